//! Which lines concern a cluster. Pure.
//!
//! In a line of text a cluster is named in four ways: `cluster=a` and `cluster="a"` as a field of an event or of what it is
//! part of (a request, a connector), `[   1.2s] a: ` as progress, and `cluster a: ` by an error. What begins with a space goes on
//! with the line before it. In a line of JSON it is the field `cluster`, of the event or of one of its spans, or the error.

use guildnet_model::ClusterId;
use serde::Deserialize;

/// Lines of one cluster, or all.
#[derive(Debug)]
pub(super) struct Selection {
    wanted: Option<Wanted>,
    /// Whether the line before was one of them.
    last: bool,
}

#[derive(Debug)]
struct Wanted {
    fields: [String; 2],
    id: String,
    error: String,
    progress: String,
}

/// What of a line of JSON can name a cluster; see the command's `log.rs`.
#[derive(Deserialize)]
struct Event {
    cluster: Option<String>,
    #[serde(default)]
    spans: Vec<Span>,
}

#[derive(Deserialize)]
struct Span {
    cluster: Option<String>,
}

impl Selection {
    pub(super) fn of(cluster: Option<&ClusterId>) -> Self {
        let wanted = cluster.map(|id| Wanted {
            fields: [format!("cluster={id}"), format!("cluster=\"{id}\"")],
            id: id.to_string(),
            error: format!("cluster {id}: "),
            progress: format!("s] {id}: "),
        });
        Self { wanted, last: false }
    }

    /// Whether this next line is one of them.
    pub(super) fn keeps(&mut self, line: &str) -> bool {
        let Some(wanted) = &self.wanted else { return true };
        if !line.starts_with([' ', '\t']) {
            self.last = wanted.names(line);
        }
        self.last
    }
}

impl Wanted {
    fn names(&self, line: &str) -> bool {
        if line.starts_with('{')
            && let Ok(event) = serde_json::from_str::<Event>(line)
        {
            let spans = event.spans.into_iter().filter_map(|span| span.cluster);
            return event.cluster.into_iter().chain(spans).any(|id| id == self.id) || self.is_in_error(line);
        }
        let field = |field: &String| {
            line.match_indices(field.as_str()).any(|(at, _)| {
                let (before, after) = (&line[..at], &line[at + field.len()..]);
                let begins = before.is_empty() || before.ends_with([' ', '{']);
                begins && (after.is_empty() || after.starts_with([' ', ',', '}']))
            })
        };
        // The first bracket closes the time.
        let progress = || {
            let rest = line.strip_prefix('[').and_then(|rest| rest.find("s] ").map(|at| &rest[at..]));
            rest.is_some_and(|rest| rest.starts_with(&self.progress))
        };
        self.fields.iter().any(field) || self.is_in_error(line) || progress()
    }

    fn is_in_error(&self, line: &str) -> bool {
        line.match_indices(&self.error).any(|(at, _)| at == 0 || line[..at].ends_with(|c: char| !c.is_alphanumeric()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the lines concern cluster a.
    fn kept<'a>(lines: &[&'a str]) -> Vec<&'a str> {
        let mut selection = Selection::of(Some(&"a".parse().expect("an id")));
        lines.iter().copied().filter(|line| selection.keeps(line)).collect()
    }

    #[test]
    fn all_ways_to_name_a_cluster_are_known() {
        let lines = [
            "2026-11-25T17:00:00.000000Z  INFO guildnet_host::cluster: connector cluster=a state=ready",
            "2026-11-25T17:00:00.000000Z  INFO guildnet_host::proxy: not passed on request=\"0\" cluster=\"a\" method=GET",
            "2026-11-25T17:00:00.000000Z  INFO guildnet_host::host: started cluster=a",
            "2026-11-25T17:00:00.000000Z  INFO dial{cluster=a to=10.96.0.1}: guildnet_host: ended",
            "2026-11-25T17:00:00.000000Z  WARN guildnet_host: not stored why=cluster a: no room",
            "[  12.3s] a: router ready (1/1)",
            "error: cluster a: there is no context x",
        ];
        assert_eq!(kept(&lines), lines);
    }

    #[test]
    fn all_ways_to_name_a_cluster_in_json_are_known() {
        let lines = [
            r#"{"timestamp":"t","level":"INFO","message":"connector","cluster":"a","state":"ready","target":"x"}"#,
            r#"{"level":"INFO","message":"x","target":"t","spans":[{"name":"http","request":"0"},{"cluster":"a","name":"c"}]}"#,
            r#"{"level":"WARN","message":"not stored","why":"cluster a: no room","target":"x"}"#,
            r#"{"level":"ERROR","message":"error: cluster a: there is no context x\n  hint: b"}"#,
            "[  12.3s] a: of a start that wrote text",
        ];
        assert_eq!(kept(&lines), lines);
        let others = [
            r#"{"level":"INFO","message":"a","cluster":"b","spans":[{"cluster":"ab","name":"a"}]}"#,
            r#"{"level":"INFO","message":"cluster=a","state":"a","spans":[]}"#,
            r#"{"level":"INFO","message":"subcluster a: x"}"#,
            "{ cut off",
        ];
        assert_eq!(kept(&others), [""; 0]);
    }

    #[test]
    fn another_cluster_is_another() {
        let lines = [
            "INFO guildnet_host::cluster: connector cluster=ab state=ready",
            "INFO guildnet_host::cluster: connector cluster=a-b state=ready",
            "INFO guildnet_host::cluster: connector cluster=b state=a",
            "INFO guildnet_host::proxy: not passed on subcluster=a cluster=\"b\"",
            "[  12.3s] b: a: ready",
            "[  12.3s] b: at [   1.0s] a: ready",
            "[  12.3s] serving at https://127.0.0.1:8090",
            "error: subcluster a: no",
            "--- 2026-11-25T17:00:00Z guildnet 0.1.0 starts",
            "",
        ];
        assert_eq!(kept(&lines), [""; 0]);
    }

    #[test]
    fn what_is_indented_belongs_to_the_line_before() {
        let lines =
            ["error: cluster b: no", "  hint: b", "error: cluster a: two", "  lines", "\tof it", "other", "  else"];
        assert_eq!(kept(&lines), ["error: cluster a: two", "  lines", "\tof it"]);
    }

    #[test]
    fn without_a_cluster_every_line_is_kept() {
        let mut all = Selection::of(None);
        assert!(["", " x", "cluster=b"].iter().all(|line| all.keeps(line)));
    }
}
