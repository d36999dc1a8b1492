//! What other machines say in words, made fit for a person's line: an error, a status, a log. Pure.

/// Characters of a quoted line: a sentence or two. The far end decides how much it says, not how much is shown.
const LINE: usize = 300;

/// The beginning of `said` as one line: runs of white space and of characters that steer a terminal or turn the direction of
/// writing become one space, and what is longer than 300 characters is cut, with an ellipsis in its place.
pub(crate) fn line(said: &str) -> String {
    let steers = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut line = String::new();
    let mut count = 0;
    for word in said.split(steers).filter(|word| !word.is_empty()) {
        for c in (count > 0).then_some(' ').into_iter().chain(word.chars()) {
            if count == LINE {
                line.push('…');
                return line;
            }
            line.push(c);
            count += 1;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_become_one_short_line() {
        assert_eq!(line("  try later\n"), "try later");
        assert_eq!(line("a\u{1b}[31mred\r\nb\0\u{202e}c"), "a [31mred b c");
        assert_eq!(line("\u{7f}\n"), "");
        assert_eq!(line(&"ä".repeat(LINE)), "ä".repeat(LINE));
        assert_eq!(line(&"ä ".repeat(LINE)).chars().count(), LINE + 1);
    }
}
