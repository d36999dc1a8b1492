//! What is built: one module of each family that a lab runs by default, and older ones for those who ask. Data only.

use std::fmt;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// How to build one family.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// Files of the module, by name.
    pub(super) files: &'static [(&'static str, &'static str)],
    pub(super) packages: &'static [&'static str],
    /// Variables that the linker sets: how these programs learn their own version.
    pub(super) stamps: &'static [(&'static str, &'static str)],
    /// A program that Go names after its folder, and its name here.
    pub(super) rename: Option<(&'static str, &'static str)>,
}

macro_rules! module {
    ($dir:literal $(, $file:literal)*) => {
        &[$(($file, include_str!(concat!("../../peers/", $dir, "/", $file)))),*]
    };
}

macro_rules! headscale {
    ($version:literal, $dir:literal) => {
        Recipe {
            name: HEADSCALE,
            version: $version,
            files: module!($dir, "go.mod", "go.sum"),
            packages: &["github.com/juanfont/headscale/cmd/headscale"],
            stamps: &[],
            rename: None,
        }
    };
}

macro_rules! tailscale {
    ($version:literal, $dir:literal) => {
        Recipe {
            name: TAILSCALE,
            version: $version,
            files: module!($dir, "go.mod", "go.sum"),
            packages: &[
                "tailscale.com/cmd/tailscaled",
                "tailscale.com/cmd/tailscale",
                "tailscale.com/cmd/containerboot",
                "tailscale.com/cmd/derper",
            ],
            // Without them the programs call themselves "ERR-BuildInfo".
            stamps: &[("tailscale.com/version.longStamp", $version), ("tailscale.com/version.shortStamp", $version)],
            rename: None,
        }
    };
}

const HEADSCALE: &str = "headscale";
const TAILSCALE: &str = "tailscale";

/// All of them. The first of a family is what a lab runs unless told otherwise.
pub(super) static RECIPES: [Recipe; 12] = [
    headscale!("0.29.2", "headscale"),
    headscale!("0.28.0", "headscale-0.28.0"),
    headscale!("0.27.1", "headscale-0.27.1"),
    headscale!("0.26.1", "headscale-0.26.1"),
    tailscale!("1.98.10", "tailscale"),
    tailscale!("1.90.9", "tailscale-1.90.9"),
    Recipe {
        name: "etcd",
        version: "3.6.16",
        files: module!("etcd", "go.mod", "go.sum"),
        packages: &["go.etcd.io/etcd/server/v3"],
        stamps: &[],
        rename: Some(("server", "etcd")),
    },
    Recipe {
        name: "kubernetes",
        // The last minor that is at ease with containerd 1.6 and version 1 of control groups.
        version: "1.34.4",
        files: module!("kubernetes", "go.mod", "go.sum"),
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kubectl",
        ],
        stamps: &[
            ("k8s.io/component-base/version.gitVersion", "v1.34.4"),
            ("k8s.io/component-base/version.gitMajor", "1"),
            ("k8s.io/component-base/version.gitMinor", "34"),
        ],
        rename: None,
    },
    Recipe {
        name: "coredns",
        version: "1.14.7",
        files: module!("coredns", "go.mod", "go.sum"),
        packages: &["github.com/coredns/coredns"],
        stamps: &[],
        rename: None,
    },
    Recipe {
        name: "workload",
        version: "1",
        files: module!("workload", "go.mod", "main.go"),
        packages: &["."],
        stamps: &[],
        rename: None,
    },
    // After Kubernetes: the libraries that they share with it are compiled by then.
    Recipe {
        name: "helm",
        // The last that is made of Kubernetes 1.34's libraries.
        version: "3.19.5",
        files: module!("helm", "go.mod", "go.sum"),
        packages: &["helm.sh/helm/v3/cmd/helm"],
        stamps: &[("helm.sh/helm/v3/internal/version.version", "v3.19.5")],
        rename: None,
    },
    Recipe {
        name: "clients",
        version: "1",
        files: module!("clients", "go.mod", "go.sum", "main.go"),
        packages: &["."],
        stamps: &[],
        rename: None,
    },
];

/// The versions of a family, the default first.
fn versions(family: &str) -> Vec<&'static str> {
    RECIPES.iter().filter(|recipe| recipe.name == family).map(|recipe| recipe.version).collect()
}

/// Which versions are wanted of the families that have several; what is not given is left as it is, or the newest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct WantedVersions {
    /// Headscale: 0.29.2, 0.28.0, 0.27.1 or 0.26.1 [default: that of the running lab, else the first]
    #[arg(long, value_name = "VERSION")]
    pub headscale: Option<String>,
    /// Tailscale, the routers: 1.98.10 or 1.90.9 [default: that of the running lab, else the first]
    #[arg(long, value_name = "VERSION")]
    pub tailscale: Option<String>,
}

/// The versions of a lab, where there is a choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The coordination server.
    pub headscale: String,
    /// The routers.
    pub tailscale: String,
}

impl Default for Versions {
    fn default() -> Self {
        let first = |family| versions(family)[0].to_owned();
        Self { headscale: first(HEADSCALE), tailscale: first(TAILSCALE) }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Headscale {}, Tailscale {}", self.headscale, self.tailscale)
    }
}

impl Versions {
    /// These, changed to what is wanted.
    ///
    /// # Errors
    /// [`LabError::Usage`] for a version that has no recipe.
    pub(crate) fn with(self, wanted: &WantedVersions) -> Result<Self, LabError> {
        let pick = |family: &str, wanted: &Option<String>, now: String| match wanted {
            None => Ok(now),
            Some(version) if versions(family).contains(&version.as_str()) => Ok(version.clone()),
            Some(version) => Err(LabError::Usage {
                what: format!("--{family} {version}: the lab can build {}", versions(family).join(", ")),
            }),
        };
        Ok(Self {
            headscale: pick(HEADSCALE, &wanted.headscale, self.headscale)?,
            tailscale: pick(TAILSCALE, &wanted.tailscale, self.tailscale)?,
        })
    }

    /// One recipe for each family.
    pub(super) fn recipes(&self) -> Vec<&'static Recipe> {
        let wanted = |recipe: &&Recipe| match recipe.name {
            HEADSCALE => recipe.version == self.headscale,
            TAILSCALE => recipe.version == self.tailscale,
            _ => true,
        };
        RECIPES.iter().filter(wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_pins_what_it_names() {
        for recipe in &RECIPES {
            let (_, module) = recipe.files[0];
            let ours = recipe.files.iter().any(|(name, _)| *name == "main.go");
            let pinned = ours || module.contains(&format!(" v{}\n", recipe.version));
            assert!(pinned, "{} {} is not what its go.mod requires", recipe.name, recipe.version);
        }
    }

    #[test]
    fn a_lab_runs_one_version_of_each_family() {
        let wanted = WantedVersions { headscale: Some("0.27.1".into()), tailscale: None };
        let versions = Versions::default().with(&wanted).expect("there is a recipe");
        assert_eq!(versions.to_string(), "Headscale 0.27.1, Tailscale 1.98.10");
        let mut names: Vec<&str> = versions.recipes().iter().map(|r| r.name).collect();
        assert!(versions.recipes().iter().any(|r| (r.name, r.version) == (HEADSCALE, "0.27.1")));
        names.dedup();
        assert_eq!(names, ["headscale", "tailscale", "etcd", "kubernetes", "coredns", "workload", "helm", "clients"]);
    }

    #[test]
    fn a_version_without_a_recipe_is_answered_with_those_that_have_one() {
        let wanted = WantedVersions { headscale: None, tailscale: Some("1.0".into()) };
        let why = Versions::default().with(&wanted).expect_err("no such version");
        assert_eq!(
            (why.exit_code(), why.to_string().as_str()),
            (2, "--tailscale 1.0: the lab can build 1.98.10, 1.90.9")
        );
    }
}
