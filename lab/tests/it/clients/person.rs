//! The fixture: a person with a folder, a kubeconfig of the fleet and a namespace in each cluster.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    fleet::{CLUSTERS, Fleet, Ran, STEP, answers, binary, finish},
    host_app::give_to_person,
};

/// A person at work. What they made is removed with this value.
pub(crate) struct Person {
    pub(crate) fleet: Fleet,
    dir: PathBuf,
    /// The namespace of this test, in both clusters.
    pub(crate) namespace: String,
}

impl Person {
    /// On the shared fleet, doors shut, with a kubeconfig that was just written.
    pub(crate) fn at(what: &str) -> Self {
        let mut fleet = Fleet::answering();
        for cluster in CLUSTERS {
            let door = fleet.lab.door_address(cluster);
            assert!(!answers(door), "the door of {cluster} is open: {door} could be dialled without the Host App");
        }
        fleet.program = installed(&fleet);
        let namespace = format!("clients-{what}-{}", std::process::id());
        let dir = fleet.lab.person_dir().join(&namespace);
        fs::create_dir(&dir).expect("the person's folder is writable for root");
        give_to_person(&fleet, &dir);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("mode");
        let person = Self { fleet, dir, namespace };
        let file = person.kubeconfig();
        person.fleet.run(&["kubeconfig", "write", "--file", &file]).ok();
        person.each(|cluster| person.kubectl(cluster, &["create", "namespace", &person.namespace]).ok());
        person
    }

    /// Does the same on both clusters at once; what each gave.
    pub(crate) fn each<T: Send>(&self, work: impl Fn(&'static str) -> T + Sync) -> [T; 2] {
        std::thread::scope(|scope| {
            let work = &work;
            CLUSTERS
                .map(|cluster| scope.spawn(move || work(cluster)))
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// The kubeconfig of the fleet.
    pub(crate) fn kubeconfig(&self) -> String {
        self.path("kubeconfig").display().to_string()
    }

    /// A path in the person's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A file of the person's.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        let folder = path.parent().expect("a file in the person's folder");
        fs::create_dir_all(folder).expect("root may write there");
        fs::write(&path, content).expect("root may write there");
        for of in path.ancestors().take_while(|of| *of != self.dir) {
            give_to_person(&self.fleet, of);
        }
        for of in path.ancestors().skip(1).take_while(|of| *of != self.dir) {
            fs::set_permissions(of, fs::Permissions::from_mode(0o700)).expect("mode");
        }
        path
    }

    /// A program as the person runs it: their rights, their folder, nothing of root's environment.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let (uid, gid) = self.fleet.lab.person();
        let mut command = Command::new(program);
        command
            .uid(uid)
            .gid(gid)
            .current_dir(&self.dir)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.dir)
            .env("TMPDIR", &self.dir)
            .env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// kubectl in a cluster's context and this test's namespace.
    pub(crate) fn kubectl_command(&self, cluster: &str) -> Command {
        let mut command = self.command(self.fleet.lab.program("kubernetes", "kubectl"));
        command.args(["--context", &format!("guildnet-{cluster}"), "--namespace", &self.namespace]);
        command
    }

    /// The same with arguments, run to its end.
    pub(crate) fn kubectl(&self, cluster: &str, args: &[&str]) -> Ran {
        self.kubectl_with(cluster, args, b"")
    }

    /// The same with standard input.
    pub(crate) fn kubectl_with(&self, cluster: &str, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.kubectl_command(cluster);
        command.args(args);
        finish(command, input, STEP)
    }

    /// Applies manifests.
    #[track_caller]
    pub(crate) fn apply(&self, cluster: &str, manifests: &str) {
        self.kubectl_with(cluster, &["apply", "--server-side", "-f", "-"], manifests.as_bytes()).ok();
    }

    /// The image that the lab's pods run: its workload, a shell and the small tools.
    pub(crate) fn image(&self, cluster: &str) -> String {
        let path = "jsonpath={.spec.template.spec.containers[0].image}";
        self.kubectl(cluster, &["-n", "default", "get", "deployment", "echo", "-o", path]).ok()
    }

    /// A pod with a script as its program, and whether that reads standard input.
    pub(crate) fn pod(&self, cluster: &str, name: &str, stdin: bool, script: &str) -> String {
        let image = self.image(cluster);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
             terminationGracePeriodSeconds: 0\n  automountServiceAccountToken: false\n  containers:\n  - name: main\n    \
             image: {image}\n    imagePullPolicy: Never\n    stdin: {stdin}\n    stdinOnce: {stdin}\n    \
             command: [sh, -c, {script:?}]\n---\n"
        )
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // Best effort: the test may be failing already, and the lab is taken down after all.
        self.fleet.run(&["kubeconfig", "remove", "--file", &self.kubeconfig()]);
        for cluster in CLUSTERS {
            self.fleet
                .kubectl(cluster, &["delete", "namespace", &self.namespace, "--wait=false", "--ignore-not-found"]);
        }
        let _left = fs::remove_dir_all(&self.dir);
    }
}

/// The command where the person may run it, as kubectl does for a token and systemd for a unit: a build may lie in a folder
/// that only root enters.
pub(crate) fn installed(fleet: &Fleet) -> PathBuf {
    let to: &Path = &fleet.lab.plan().instance.data_dir().join("guildnet");
    let built = fs::read(binary()).expect("the command under test");
    if !fs::read(to).is_ok_and(|there| there == built) {
        // A Host App may be running from there: it keeps its file, the name gets another.
        let new = to.with_extension("new");
        fs::write(&new, built).expect("root may write there");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("mode");
        fs::rename(&new, to).expect("the same folder");
    }
    to.to_owned()
}
