//! A command -> the same with mounts that nobody else sees: a disk that is small, names of its own.

use std::process::{Command, Stdio};

/// The command, after `script` has made the mounts. It keeps its process id.
///
/// Wants root, or a kernel that lets everybody make user namespaces.
#[track_caller]
pub fn apart(script: &str, command: &Command) -> Command {
    let works = |option: &&&str| {
        let mut unshare = Command::new("unshare");
        unshare.args([**option, "mount", "-t", "tmpfs", "none", "/mnt"]).stdin(Stdio::null()).stderr(Stdio::null());
        unshare.status().is_ok_and(|status| status.success())
    };
    let option = ["-m", "-rm"].iter().find(works);
    let option = option.expect(
        "mounts of our own: run the tests as root with CAP_SYS_ADMIN, or allow user namespaces (sysctl \
         kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
    );
    let mut apart = Command::new("unshare");
    apart.arg(option).args(["sh", "-c", &format!("set -e; {script}; exec \"$@\""), "sh"]);
    apart.arg(command.get_program()).args(command.get_args());
    apart
}
