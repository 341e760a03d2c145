//! openraft's simulated runtime (one thread, virtual time, one seed), with processes in it.
//!
//! A task belongs to the process in which it was spawned, and so does all that it spawns. A frozen
//! process is not polled: what it waited for is ready when it thaws, as after SIGSTOP. A killed one
//! is dropped, never polled again. Tasks without a process are the world: network, faults, checks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_sim::{SimInstant, SimRuntime};
use parking_lot::Mutex;

/// Polls of one process's tasks at one moment; more are a loop that never waits. (The executor has a
/// bound of its own, which is higher, and which it does not survive.)
const POLLS_AT_ONCE: u64 = 20_000;

thread_local! {
    static PRESENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Frozen,
    Dead,
}

#[derive(Debug)]
struct Inner {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    last: u64,
    /// The present moment, and polls at it.
    moment: (Option<SimInstant>, u64),
    /// Tasks that have been polled and have not ended.
    tasks: BTreeMap<u64, Waker>,
}

/// Tasks that freeze and die together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Process(Arc<Inner>);

impl Process {
    pub fn new(name: impl Into<String>) -> Process {
        let state =
            Mutex::new(State { phase: Phase::Running, last: 0, moment: (None, 0), tasks: BTreeMap::new() });
        Process(Arc::new(Inner { name: name.into(), state }))
    }

    /// The one whose task is being polled; none: the world.
    pub fn present() -> Option<Process> {
        PRESENT.with(|present| present.borrow().clone())
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn is_dead(&self) -> bool {
        self.0.state.lock().phase == Phase::Dead
    }

    pub fn is_frozen(&self) -> bool {
        self.0.state.lock().phase == Phase::Frozen
    }

    /// Starts a task in this process.
    pub fn spawn<T>(&self, future: T) -> <SimRuntime as AsyncRuntime>::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        within(Some(self.clone()), || Runtime::spawn(future))
    }

    /// Starts a task that belongs to nobody.
    pub fn spawn_outside<T>(future: T) -> <SimRuntime as AsyncRuntime>::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        within(None, || Runtime::spawn(future))
    }

    pub fn freeze(&self) {
        let mut state = self.0.state.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Frozen;
        }
    }

    pub fn thaw(&self) {
        let wakers = {
            let mut state = self.0.state.lock();
            if state.phase != Phase::Frozen {
                return;
            }
            state.phase = Phase::Running;
            state.tasks.values().cloned().collect::<Vec<_>>()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nothing of it runs again; its tasks are dropped at this moment of virtual time.
    pub fn kill(&self) {
        let wakers = {
            let mut state = self.0.state.lock();
            state.phase = Phase::Dead;
            std::mem::take(&mut state.tasks)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    fn enlist(&self) -> u64 {
        let mut state = self.0.state.lock();
        state.last += 1;
        state.last
    }

    fn polled(&self, task: u64, waker: &Waker) -> Phase {
        let mut state = self.0.state.lock();
        if state.phase != Phase::Dead {
            let known = state.tasks.entry(task).or_insert_with(|| waker.clone());
            known.clone_from(waker);
        }
        let now = SimInstant::try_now();
        if state.moment.0 != now {
            state.moment = (now, 0);
        }
        state.moment.1 += 1;
        state.phase
    }

    fn spins(&self) -> bool {
        self.0.state.lock().moment.1 > POLLS_AT_ONCE
    }

    fn ended(&self, task: u64) {
        self.0.state.lock().tasks.remove(&task);
    }
}

fn within<T>(process: Option<Process>, act: impl FnOnce() -> T) -> T {
    struct Back(Option<Process>);
    impl Drop for Back {
        fn drop(&mut self) {
            let before = self.0.take();
            PRESENT.with(|present| drop(present.replace(before)));
        }
    }
    let _back = Back(PRESENT.with(|present| present.replace(process)));
    act()
}

/// A task of a process.
struct Confined<F> {
    process: Process,
    task: u64,
    /// Gone once the process is dead.
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Confined<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        match this.process.polled(this.task, cx.waker()) {
            Phase::Frozen => Poll::Pending,
            Phase::Dead => {
                let future = this.future.take();
                within(Some(this.process.clone()), || drop(future));
                Poll::Pending
            }
            Phase::Running => {
                let Some(future) = &mut this.future else { return Poll::Pending };
                assert!(!this.process.spins(), "a loop without a wait: {}", std::any::type_name::<F>());
                let polled = within(Some(this.process.clone()), || future.as_mut().poll(cx));
                if polled.is_ready() {
                    this.process.ended(this.task);
                }
                polled
            }
        }
    }
}

/// As [`SimRuntime`], and tasks stay in their processes.
#[derive(Debug)]
pub struct Runtime(SimRuntime);

impl Runtime {
    pub fn with_seed(seed: u64) -> Runtime {
        Runtime(SimRuntime::with_seed(seed))
    }

    /// Whether the executor keeps a trace, for [`Runtime::take_trace`].
    pub fn record_trace(&mut self, record: bool) {
        self.0.record_trace(record);
    }

    pub fn take_trace(&self) -> Vec<String> {
        self.0.take_trace()
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = <SimRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match Process::present() {
            Some(process) => {
                let task = process.enlist();
                SimRuntime::spawn(Confined { process, task, future: Some(Box::pin(future)) })
            }
            None => SimRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        SimRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn new(threads: usize) -> Self {
        Runtime(SimRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    /// At once: a thread would end at another moment in each run.
    fn spawn_blocking<F, T>(f: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        std::future::ready(Ok(f()))
    }
}
