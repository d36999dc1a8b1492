//! The clients that are compared: a process each, asked by lines.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use guildnet_model::{Secret, SiteNumber, Target, via6};
use tempfile::TempDir;

use crate::{figures::Failure, protocol::Answer, tailnet::Tailnet};

/// How long a client may take to end, and how often that is looked at.
const END_LIMIT: Duration = Duration::from_secs(10);
const END_LOOK: Duration = Duration::from_millis(50);
/// How long any answer may take: a gigabyte over a slow relay takes less.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    Tsnet,
    /// A tailscaled without a device, dialled through SOCKS5.
    Socks5,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::Tsnet => "tsnet",
            Self::Socks5 => "socks5",
        })
    }
}

/// Programs and addresses: all that a client is started from.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) tailnet: &'a Tailnet,
    pub(super) target: Target,
    /// The site by which the routers serve it, if that is the only way.
    pub(super) site: Option<SiteNumber>,
    /// Our client, beside this program.
    pub(super) ours: PathBuf,
    pub(super) tsnet: &'a Path,
    pub(super) tailscale: Option<&'a Path>,
}

impl Start<'_> {
    /// Starts a client, inside a network namespace if one is named. It joins when it is told to.
    pub(super) fn client(
        &self,
        kind: Kind,
        hostname: &str,
        key: &Secret<String>,
        inside: Option<&str>,
    ) -> Result<Peer, Failure> {
        let program = if kind == Kind::Tsnet { self.tsnet } else { &self.ours };
        let mut command = match inside {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
                command
            }
        };
        match (kind, self.site) {
            (Kind::Ours, Some(site)) => drop(command.args(["--site", &site.to_string()])),
            (Kind::Ours, None) | (Kind::Tsnet, _) => {}
            (Kind::Socks5, _) => {
                let programs = self.tailscale.ok_or("no --tailscale, the folder with tailscaled and tailscale")?;
                command.arg("--tailscale").arg(programs);
            }
        }
        let target = if kind == Kind::Ours { self.target } else { as_others_dial(self.target, self.site) };
        command
            .args([self.tailnet.headscale_url.as_str(), hostname, &target.to_string()])
            .env("TS_AUTHKEY", key.expose())
            .env("SSL_CERT_FILE", &self.tailnet.headscale_ca)
            .env("TS_NO_LOGS_NO_SUPPORT", "true");
        Peer::spawn(kind, command)
    }
}

/// Our connector finds the 4via6 form by itself; to others it must be told.
pub(super) fn as_others_dial(target: Target, site: Option<SiteNumber>) -> Target {
    match (site, target.addr()) {
        (Some(site), std::net::SocketAddr::V4(v4)) => {
            std::net::SocketAddr::from((via6::address(site, *v4.ip()), v4.port())).into()
        }
        _ => target,
    }
}

/// A client process.
pub(super) struct Peer {
    pub(super) kind: Kind,
    pub(super) started: Instant,
    child: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<String>,
    /// What it keeps; gone with it, also when it has to be killed.
    _folder: TempDir,
}

impl Peer {
    fn spawn(kind: Kind, mut command: Command) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        command.env("TMPDIR", folder.path());
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|why| format!("{} could not be started: {why}", command.get_program().display()))?;
        let commands = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("the pipe was asked for")).lines();
        // It ends with the client's output, so with the client.
        let (told, answers) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| told.send(line)));
        Ok(Self { kind, started, child, commands, answers, _folder: folder })
    }

    /// Tells it a command, whose answer is to be waited for.
    pub(super) fn tell(&mut self, command: &str) -> Result<(), Failure> {
        let commands =
            self.commands.as_mut().ok_or_else(|| format!("{}: it is not listened to any more", self.kind))?;
        writeln!(commands, "{command}")?;
        commands.flush()?;
        Ok(())
    }

    pub(super) fn answer(&mut self, command: &str) -> Result<Answer, Failure> {
        let Ok(line) = self.answers.recv_timeout(ANSWER_LIMIT) else {
            // What comes later would be taken for another command's answer.
            self.commands = None;
            return Err(format!("{}: {command}: no answer", self.kind).into());
        };
        let answer: Answer = serde_json::from_str(&line)
            .map_err(|why| format!("{}: {command:?} was answered {line:?}: {why}", self.kind))?;
        if answer.error.is_empty() {
            Ok(answer)
        } else {
            Err(format!("{}: {command}: {}", self.kind, answer.error).into())
        }
    }

    pub(super) fn ask(&mut self, command: &str) -> Result<Answer, Failure> {
        self.tell(command)?;
        self.answer(command)
    }
}

impl Drop for Peer {
    /// Closes standard input, which ends the client, and waits for it. One that does not end is killed: tsnet's own close was
    /// seen to hang after many flows, and its figures are in.
    fn drop(&mut self) {
        self.commands = None;
        let begun = Instant::now();
        while begun.elapsed() < END_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(END_LOOK);
        }
        // It may have ended just now.
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Asks all of them the same, so many rounds: one list of answers for each client.
pub(super) fn rounds(peers: &mut [Peer], command: &str, rounds: usize) -> Result<Vec<Vec<Answer>>, Failure> {
    let mut seen = vec![Vec::new(); peers.len()];
    for round in 0..rounds {
        for k in turns(peers.len(), round) {
            seen[k].push(peers[k].ask(command)?);
        }
    }
    Ok(seen)
}

/// Who comes first finds the machine as another has left it: they take turns.
pub(super) fn turns(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |k| (k + round) % count)
}

#[cfg(test)]
mod tests {
    use guildnet_model::SiteNumber;

    use super::{as_others_dial, turns};

    #[test]
    fn each_comes_first_in_its_turn() {
        let orders: Vec<Vec<usize>> = (0..3).map(|round| turns(3, round).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }

    #[test]
    fn others_are_told_the_4via6_form() {
        let target = "10.96.0.80:9000".parse().expect("target");
        let site = SiteNumber::try_from(7).expect("in range");
        assert_eq!(as_others_dial(target, None), target);
        assert_eq!(as_others_dial(target, Some(site)).to_string(), "[fd7a:115c:a1e0:b1a:0:7:a60:50]:9000");
    }
}
