//! What the allocator is told.
#![allow(unsafe_code)]

/// Gives the system back what the calling thread has freed. The allocator does so by itself, some time after the
/// last of a page is freed, but only on a thread that goes on allocating: one that comes to rest keeps it all.
pub(crate) fn give_back() {
    // SAFETY: a call without preconditions; it touches what the allocator itself owns of this thread.
    unsafe { libmimalloc_sys::mi_collect(false) }
}
