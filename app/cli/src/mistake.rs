//! What to say when the command line is not understood.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{output, suggest};

/// Prints help or the mistake; 0 for help, 2 for a mistake.
pub(crate) fn report(error: &clap::Error) -> ExitCode {
    let to_stderr = error.use_stderr();
    let rendered = error.render();
    let text = if output::stream_is_terminal(to_stderr) {
        rendered.ansi().to_string()
    } else {
        rendered.to_string()
    };
    if !to_stderr {
        // A reader of the help that went away early has what it wanted.
        let _ = output::answer(&text);
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output::stderr(&text);
    } else {
        output::stderr(&text.replacen("error:", "plimsoll:", 1));
        if let Some(ours) = unknown_command(error).and_then(|word| suggest::other_word(&word)) {
            output::failure(&format!("here that is `plimsoll {ours}`"));
        }
    }
    ExitCode::from(2)
}

/// The word that was taken for a command, if that is the mistake.
fn unknown_command(error: &clap::Error) -> Option<String> {
    match (error.kind(), error.get(ContextKind::InvalidSubcommand)?) {
        (ErrorKind::InvalidSubcommand, ContextValue::String(word)) => Some(word.clone()),
        _ => None,
    }
}
