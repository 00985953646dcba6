//! A shell's name -> the script that completes our commands in it.

use clap::CommandFactory;

use super::{Arguments, Shell};

/// The script.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut Arguments::command(), "offshoot", &mut script);
    String::from_utf8(script).expect("the scripts are text")
}
