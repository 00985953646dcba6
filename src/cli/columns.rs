//! What stands beside each other -> two columns as wide as the terminal.

use anstyle::Style;

/// A line of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How all of it looks.
    pub style: Style,
    /// At most as wide as its column.
    pub text: String,
}

/// Two columns, with a line between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Characters of the left one.
    pub left: usize,
    /// Characters of the right one.
    pub right: usize,
}

impl Columns {
    /// As wide as the terminal together, within reason.
    pub fn of_terminal() -> Columns {
        Columns::of(terminal_width().unwrap_or(120).clamp(60, 200))
    }

    fn of(width: usize) -> Columns {
        let left = (width - 3) / 2;
        Columns { left, right: width - 3 - left }
    }

    /// Characters of both and what is between them.
    pub fn width(self) -> usize {
        self.left + self.right + 3
    }

    /// Prints lines beside each other.
    pub fn print(self, left: &[Line], right: &[Line]) {
        let dim = Style::new().dimmed();
        let empty = Line { style: Style::new(), text: String::new() };
        for row in 0..left.len().max(right.len()) {
            let (left, right) = (left.get(row).unwrap_or(&empty), right.get(row).unwrap_or(&empty));
            let pad = " ".repeat(self.left.saturating_sub(left.text.chars().count()));
            let (l, r) = (left.style, right.style);
            anstream::println!("{l}{}{l:#}{pad} {dim}│{dim:#} {r}{}{r:#}", left.text, right.text);
        }
    }
}

/// Breaks a text at spaces into at most `lines_max` lines; from the second on they are indented, and what does not fit is
/// cut.
pub fn wrap(text: &str, width: usize, lines_max: usize, style: Style) -> Vec<Line> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() == lines_max;
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() {
            *line = word.into();
        } else if last || line.chars().count() + 1 + word.chars().count() <= width {
            *line += &format!(" {word}");
        } else {
            lines.push(format!("  {word}"));
        }
    }
    lines.into_iter().map(|text| Line { style, text: cut(&text, width) }).collect()
}

/// JSON as a person reads it: a space after each comma and colon, where a line may break. Its own spaces between values go.
pub fn spaced(json: &str) -> String {
    let (mut out, mut quoted, mut escaped) = (String::with_capacity(json.len() * 2), false, false);
    for c in json.chars() {
        if !quoted && c.is_ascii_whitespace() {
            continue;
        }
        out.push(c);
        if !quoted && [',', ':'].contains(&c) {
            out.push(' ');
        }
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
    }
    out
}

/// The text, or its start and a mark.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.into();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The columns of the terminal that stdout is, or of `COLUMNS`.
fn terminal_width() -> Option<usize> {
    // SAFETY: the call writes the size into the value that it is given; zero is a value of every field.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        (libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) == 0).then_some(size)
    };
    let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    columns.or_else(|| std::env::var("COLUMNS").ok()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_breaks_at_spaces_and_is_cut_where_there_is_no_more_room() {
        let texts = |text: &str, width, lines_max| {
            let lines = wrap(text, width, lines_max, Style::new());
            lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
        };
        assert_eq!(texts("one two three", 7, 9), ["one two", "  three"]);
        assert_eq!(texts("one two three four", 8, 2), ["one two", "  three…"]);
        assert_eq!(texts("", 8, 2), [""]);
        assert_eq!(texts("endlessly", 4, 2), ["end…"]);
    }

    #[test]
    fn json_breaks_where_a_person_would() {
        assert_eq!(spaced(r#"{"a":[1,null, "x, \"y:z\\"],"b":{}}"#), r#"{"a": [1, null, "x, \"y:z\\"], "b": {}}"#);
    }

    #[test]
    fn columns_share_the_width() {
        assert_eq!(Columns::of(80), Columns { left: 38, right: 39 });
        assert_eq!(Columns::of(80).width(), 80);
    }
}
