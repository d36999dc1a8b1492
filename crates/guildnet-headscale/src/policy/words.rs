//! What a policy document holds, entry by entry, in words for a person.

use serde_json::Value;

use super::{others::some_of, ours::texts};

/// Each entry of a document: a rule, an owner of a tag, an approver of a network.
fn entries(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(String::new(), document, &mut found);
    found.sort();
    found
}

fn collect(path: String, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) if !members.is_empty() && !is_rule(value) => {
            for (name, member) in members {
                let below = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
                collect(below, member, found);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for member in list {
                found.push(format!("{path}: {}", in_words(member)));
            }
        }
        other => found.push(format!("{path}: {}", in_words(other))),
    }
}

fn is_rule(value: &Value) -> bool {
    value.get("src").is_some()
}

/// One entry. Every member of a rule is told: two rules that differ have different words.
fn in_words(entry: &Value) -> String {
    if let Value::String(text) = entry {
        return text.clone();
    }
    if !is_rule(entry) {
        return entry.to_string();
    }
    let list = |name: &str| texts(entry.get(name)).collect::<Vec<_>>().join(", ");
    let mut said = format!("{} -> {}", list("src"), list("dst"));
    for (name, value) in entry.as_object().into_iter().flatten() {
        match name.as_str() {
            "src" | "dst" => {}
            "ip" if *value == serde_json::json!(["*"]) => {}
            "action" if value == "accept" => {}
            "via" => said.push_str(&format!(" via {}", list("via"))),
            _ => said.push_str(&format!(" {name} {value}")),
        }
    }
    said
}

/// What `held` lacks of `wanted`, and has beside it: the first of each, and how many more.
pub(super) fn difference(held: &Value, wanted: &Value) -> String {
    let (held, wanted) = (entries(held), entries(wanted));
    let part = |word: &str, of: &[String], without: &[String]| {
        let only: Vec<String> = of.iter().filter(|entry| !without.contains(entry)).cloned().collect();
        let (first, more) = only.split_first()?;
        Some(match more.len() {
            0 => format!("{word} {first}"),
            n => format!("{word} {first}, and {n} more"),
        })
    };
    let parts = [part("missing:", &wanted, &held), part("too much:", &held, &wanted)];
    let said: Vec<String> = parts.into_iter().flatten().collect();
    if said.is_empty() { "entries stand there twice".to_owned() } else { said.join("; ") }
}

/// One member of a document: its name, and the rules or names in it.
pub(super) fn member(name: &str, value: &Value) -> String {
    let within: Vec<String> = match value {
        Value::Array(list) => list.iter().map(in_words).collect(),
        Value::Object(members) => members.keys().cloned().collect(),
        other => vec![other.to_string()],
    };
    format!("{name}: {}", some_of(&within))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_names_its_first_entries() {
        let wanted = json!({"grants": [
            {"src": ["tag:gn-a-client"], "dst": ["10.96.0.0/16"], "ip": ["*"], "via": ["tag:gn-a-router"]},
            {"src": ["tag:gn-a-client"], "dst": ["tag:gn-a-router"], "ip": ["*"]},
        ]});
        let held = json!({"grants": [], "tagOwners": {"tag:ops": []}});
        assert_eq!(
            difference(&held, &wanted),
            "missing: grants: tag:gn-a-client -> 10.96.0.0/16 via tag:gn-a-router, and 1 more; \
             too much: grants: [], and 1 more"
        );
        assert_eq!(difference(&json!({"a": ["x", "x"]}), &json!({"a": ["x"]})), "entries stand there twice");
    }

    #[test]
    fn a_member_names_what_is_in_it() {
        assert_eq!(
            member("grants", &json!([{"src": ["tag:ops"], "dst": ["tag:ops"], "ip": ["*"]}])),
            "grants: tag:ops -> tag:ops"
        );
        assert_eq!(member("tagOwners", &json!({"tag:ops": []})), "tagOwners: tag:ops");
    }
}
