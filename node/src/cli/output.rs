//! What commands print: results on stdout, as text or JSON; the rest on stderr.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// How a command ends when it does not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 2.
    Usage(String),
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Exit code 1; the reasons are printed already.
    Told,
    /// Whoever read our output has seen enough: a success.
    ClosedPipe,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast_ref::<io::Error>() {
            Some(e) if e.kind() == io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::Failed(error),
        }
    }
}

pub(crate) type Outcome = Result<(), Failure>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// Options that every command with a result takes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Output {
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) format: Format,
    /// Print nothing but errors; the exit code tells
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl Output {
    pub(crate) fn json(self) -> bool {
        self.format == Format::Json
    }

    /// A result for people.
    pub(crate) fn text(self, text: &str) -> Outcome {
        if self.quiet || text.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// A result for programs, one line.
    pub(crate) fn value(self, value: &impl Serialize) -> Outcome {
        if self.quiet {
            return Ok(());
        }
        Self::print_json(value)
    }

    /// As [`Output::value`], whatever was said of quiet.
    pub(crate) fn print_json(value: &impl Serialize) -> Outcome {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        Ok(out.flush()?)
    }

    /// What is worth knowing beside the result.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            complain(text);
        }
    }
}

/// On stderr; a closed stderr is no reason to fail.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Colours, where somebody sees them.
#[derive(Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn stdout() -> Paint {
        Paint(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A diff: what came green, what went red.
    pub(crate) fn diff(self, diff: &str) -> String {
        let paint = |line: &str| match line.as_bytes().first() {
            Some(b'+') => self.good(line),
            Some(b'-') => self.bad(line),
            _ => line.to_owned(),
        };
        diff.lines().map(|line| paint(line) + "\n").collect()
    }
}

/// Columns as wide as their widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "long".to_owned()], vec!["abcde".to_owned(), "ü".to_owned()]];
        assert_eq!(table(&["ID", "X"], &rows), "ID     X\na      long\nabcde  ü\n");
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_failure() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(Failure::from(closed), Failure::ClosedPipe));
        assert!(matches!(Failure::from(io::Error::other("disk")), Failure::Failed(_)));
    }

    #[test]
    fn nothing_is_coloured_for_a_file() {
        assert_eq!(Paint(false).diff("+ a\n- b\n"), "+ a\n- b\n");
        assert_eq!(Paint(true).diff("+ a\n"), "\x1b[32m+ a\x1b[0m\n");
    }
}
