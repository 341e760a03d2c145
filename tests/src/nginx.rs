//! A real nginx of a test's own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Ended when it is dropped.
pub struct Nginx {
    child: Child,
    _dir: TempDir,
}

impl Nginx {
    /// With the `server` blocks that `servers` writes for its folder; the caller waits until it answers.
    pub fn start(servers: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let d = dir.path().display();
        let servers = servers(dir.path());
        let config = format!(
            "daemon off; master_process off; pid {d}/pid; error_log {d}/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f;\n\
             uwsgi_temp_path {d}/u; scgi_temp_path {d}/s; client_max_body_size 0;\n{servers} }}\n"
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).expect("write");
        let child = Command::new("nginx")
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        Self { child, _dir: dir }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
