//! openraft's contract for stores, on real files.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::types::TypeConfig;
use crate::{LogStore, StateMachine, Store};

struct Folders;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, (TempDir, Store)> for Folders {
    async fn build(&self) -> Result<((TempDir, Store), LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(dir.path()).expect("a new folder opens");
        let (log, machine) = (store.log(), store.machine());
        Ok(((dir, store), log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_keeps_openrafts_contract() {
    Suite::test_all(Folders).await.unwrap();
}
