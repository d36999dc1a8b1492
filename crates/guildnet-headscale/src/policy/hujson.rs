//! Policies are written as HuJSON: JSON with comments and with commas behind the last element. This makes it JSON.

/// Blanks out comments and superfluous commas. Lines and columns stay where they were, so that errors point right.
pub(super) fn standardize(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    // Where the last comma stood, if nothing but blanks and comments came since.
    let mut comma = None;
    let mut at = 0;
    while at < out.len() {
        match out[at] {
            b'"' => {
                comma = None;
                at = end_of_string(&out, at);
            }
            b'/' if out.get(at + 1) == Some(&b'/') => {
                let end = out[at..].iter().position(|b| *b == b'\n').map_or(out.len(), |n| at + n);
                out[at..end].fill(b' ');
                at = end;
            }
            b'/' if out.get(at + 1) == Some(&b'*') => {
                let end = out[at + 2..].windows(2).position(|w| w == b"*/").map_or(out.len(), |n| at + 2 + n + 2);
                out[at..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
                at = end;
            }
            b',' => {
                comma = Some(at);
                at += 1;
            }
            b'}' | b']' => {
                if let Some(superfluous) = comma.take() {
                    out[superfluous] = b' ';
                }
                at += 1;
            }
            other => {
                if !other.is_ascii_whitespace() {
                    comma = None;
                }
                at += 1;
            }
        }
    }
    // Only whole characters were replaced, each byte by a blank.
    String::from_utf8_lossy(&out).into_owned()
}

fn end_of_string(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(text: &str) -> Value {
        serde_json::from_str(&standardize(text)).expect("JSON")
    }

    #[test]
    fn comments_and_last_commas_are_taken_out() {
        let text = "// first\n{ \"a\": [1, 2, /* two */ ], // é\n \"b\": {\"c\": 3,\n},\n}\n// end";
        assert_eq!(read(text), json!({"a": [1, 2], "b": {"c": 3}}));
    }

    #[test]
    fn strings_are_left_alone() {
        let text = r#"{"a": "// no, /* comment */ ,}", "b\"//": "\\"}"#;
        assert_eq!(read(text), json!({"a": "// no, /* comment */ ,}", "b\"//": "\\"}));
    }

    #[test]
    fn what_was_wrong_stays_wrong() {
        for bad in ["{,}x", "[1,,2]", "[,", "{\"a\"", "/*", "\"\\"] {
            assert!(serde_json::from_str::<Value>(&standardize(bad)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_keeps_its_length(text: String) {
            prop_assert_eq!(standardize(&text).len(), text.len());
        }
    }
}
