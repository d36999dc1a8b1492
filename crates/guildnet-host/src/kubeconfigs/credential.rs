//! What kubectl runs before a request: a token that lives for minutes, in the form in which kubectl takes it. Asks files
//! only, and no Host App: it is run again and again, and must be done in milliseconds.
//!
//! Format: `client.authentication.k8s.io`, https://kubernetes.io/docs/reference/config-api/client-authentication.v1/.

use std::{path::Path, time::SystemTime};

use guildnet_model::{Class, Secret};
use jiff::{Timestamp, Unit};
use serde::Deserialize;

use crate::{HostError, daemon, door};

/// The versions in which it can be answered; they are the same in what is used here.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// What kubectl is answered.
#[derive(Debug)]
pub struct KubeCredential {
    /// An `ExecCredential`, JSON.
    pub json: Secret<String>,
    /// What the person should know, if nothing will be there to take the token.
    pub warning: Option<String>,
}

/// What `KUBERNETES_EXEC_INFO` says, as far as it matters.
#[derive(Deserialize)]
struct ExecInfo {
    #[serde(rename = "apiVersion")]
    api_version: String,
}

/// A short-lived token for `/k8s/`, made from this home folder's own. `exec_info` is what kubectl says in
/// `KUBERNETES_EXEC_INFO`.
///
/// # Errors
/// kubectl asks in a form that is not known; there is no token here, or it can't be read.
pub fn kube_credential(home: &Path, exec_info: Option<&str>) -> Result<KubeCredential, HostError> {
    let version = match exec_info.filter(|text| !text.is_empty()) {
        Some(text) => asked_version(text)?,
        None => VERSIONS[0],
    };
    let Some(token) = door::existing_token(home)? else {
        return Err(HostError::new(Class::Credentials, format!("no Host App was ever started in {}", home.display()))
            .with_hint("guildnet up; or take these contexts out of the kubeconfig: guildnet kubeconfig remove"));
    };
    let (token, ends) = door::kube_token::make(&token, SystemTime::now())?;
    let ends = Timestamp::try_from(ends).and_then(|ends| ends.round(Unit::Second)).map_err(|why| {
        HostError::new(Class::Failed, format!("this machine's clock can't be used: {why}")).with_hint("set the clock")
    })?;
    // Put together by hand, so that the token is in one place only: it has no letter that JSON would write otherwise.
    let json = format!(
        "{{\"apiVersion\":\"{version}\",\"kind\":\"ExecCredential\",\"status\":{{\"expirationTimestamp\":\"{ends}\",\"token\":\"{}\"}}}}\n",
        token.expose()
    );
    let warning = match daemon::running(home) {
        Ok(Some(_)) => None,
        _ => Some("the Host App is not running; start it: guildnet up".to_owned()),
    };
    Ok(KubeCredential { json: Secret::new(json), warning })
}

fn asked_version(exec_info: &str) -> Result<&'static str, HostError> {
    let wrong = |what: String| {
        HostError::new(Class::Usage, what)
            .with_hint("update kubectl, or write the entries again: guildnet kubeconfig write")
    };
    let asked: ExecInfo = serde_json::from_str(exec_info)
        .map_err(|_| wrong("KUBERNETES_EXEC_INFO is not what kubectl says there".into()))?;
    VERSIONS.into_iter().find(|known| *known == asked.api_version).ok_or_else(|| {
        wrong(format!("kubectl asks for a credential as {}, known are {}", asked.api_version, VERSIONS.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    fn answered(home: &Path, exec_info: Option<&str>) -> serde_json::Value {
        let made = kube_credential(home, exec_info).expect("a credential");
        serde_json::from_str(made.json.expose()).expect("JSON")
    }

    #[test]
    fn kubectl_is_answered_in_the_version_that_it_asks_for() {
        let home = tempfile::tempdir().expect("tempdir");
        door::token(home.path()).expect("made");
        assert_eq!(answered(home.path(), None)["apiVersion"], VERSIONS[0]);
        for version in VERSIONS {
            let info =
                format!(r#"{{"apiVersion":"{version}","kind":"ExecCredential","spec":{{"interactive":false}}}}"#);
            let said = answered(home.path(), Some(&info));
            assert_eq!((&said["apiVersion"], &said["kind"]), (&version.into(), &"ExecCredential".into()));
            let ends: Timestamp =
                said["status"]["expirationTimestamp"].as_str().expect("text").parse().expect("a time");
            let left = ends.duration_since(Timestamp::now()).as_secs();
            assert!((14 * 60..=15 * 60).contains(&left), "{left}");
        }
        for other in [r#"{"apiVersion":"client.authentication.k8s.io/v1alpha1"}"#, "{", "{}"] {
            assert_eq!(
                kube_credential(home.path(), Some(other)).expect_err("refused").class(),
                Class::Usage,
                "{other}"
            );
        }
    }

    #[test]
    fn without_a_host_app_the_token_is_made_and_the_person_told() {
        let home = tempfile::tempdir().expect("tempdir");
        let refused = kube_credential(home.path(), None).expect_err("no token");
        assert_eq!(refused.class(), Class::Credentials);
        assert_eq!(std::fs::read_dir(home.path()).expect("read").count(), 0, "nothing was made");
        door::token(home.path()).expect("made");
        let warning = kube_credential(home.path(), None).expect("made").warning.expect("a warning");
        assert!(warning.contains("guildnet up"), "{warning}");
    }
}
