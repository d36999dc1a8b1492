//! SOCKS5 (RFC 1928) with user and password (RFC 1929): `CONNECT` to addresses and names of the cluster, and nothing else.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use guildnet_model::{Class, DialError, Explain as _, Secret};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{LOGIN_PAUSE, LOGIN_TIME, credential::Credential, entrance::Gate};
use crate::names::{Destination, OpenError};

/// The protocol's version (RFC 1928 section 3), and that of the log-in (RFC 1929 section 2).
const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
/// The method "user and password", and that none is acceptable.
const BY_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
/// The command "connect".
const CONNECT: u8 = 1;
/// Kinds of address (RFC 1928 section 5).
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const IPV6: u8 = 4;

/// Replies (RFC 1928 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Reply {
    Succeeded = 0,
    Failed = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    CommandNotSupported = 7,
    AddressNotSupported = 8,
}

/// How a request ended before there was anything to dial.
#[derive(Debug)]
enum Ended {
    /// The client is not one, has gone, or is told by closing.
    Gone(String),
    /// It is told why.
    Told(Reply, String),
}

impl From<io::Error> for Ended {
    fn from(why: io::Error) -> Self {
        Self::Gone(format!("the client's request broke off: {why}"))
    }
}

/// One client, from its greeting to the end of its stream.
///
/// # Errors
/// Why it got no stream, in words.
pub(super) async fn serve(gate: &Arc<Gate>, mut near: TcpStream, credential: &Credential) -> Result<(), String> {
    let (give_way, unproved) = gate.unproven();
    let logging_in = timeout(LOGIN_TIME, log_in(&mut near, credential));
    match give_way.run_until_cancelled(logging_in).await {
        Some(Ok(Ok(()))) => {}
        Some(Ok(Err(Ended::Gone(why) | Ended::Told(_, why)))) => return Err(why),
        Some(Err(_)) => return Err(format!("a client did not log in within {LOGIN_TIME:?}")),
        None => return Err("too many clients that do not log in: the oldest had to go".into()),
    }
    drop(unproved);
    let asked = timeout(LOGIN_TIME, request(&mut near)).await;
    let to = match asked.unwrap_or_else(|_| Err(Ended::Gone(format!("no request within {LOGIN_TIME:?}")))) {
        Ok(to) => to,
        Err(Ended::Gone(why)) => return Err(why),
        Err(Ended::Told(reply, why)) => return refuse(near, reply, why).await,
    };
    let place = match gate.enter() {
        Ok(place) => place,
        Err(why) => return refuse(near, Reply::Failed, why).await,
    };
    match gate.open(&to).await {
        Ok(far) => {
            if near.write_all(&answer(Reply::Succeeded)).await.is_ok() {
                gate.carry(near, far, place).await;
            }
            Ok(())
        }
        Err(why) => {
            let reply = reply_to(&why);
            refuse(near, reply, gate.words(why)).await
        }
    }
}

/// Tells the client, and is the error.
async fn refuse(mut near: impl AsyncWrite + Unpin, reply: Reply, why: String) -> Result<(), String> {
    // It may have gone by now.
    let _ = timeout(LOGIN_TIME, async {
        near.write_all(&answer(reply)).await?;
        near.shutdown().await
    })
    .await;
    Err(why)
}

/// A reply without the address that was bound here: it says nothing to the client (RFC 1928 section 6).
fn answer(reply: Reply) -> [u8; 10] {
    [VERSION, reply as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
}

/// The greeting and the log-in. A wrong password is answered late.
async fn log_in(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), credential: &Credential) -> Result<(), Ended> {
    if stream.read_u8().await? != VERSION {
        return Err(Ended::Gone("a client does not speak SOCKS5".into()));
    }
    let mut methods = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&BY_PASSWORD) {
        stream.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(Ended::Gone("a client has no user and password".into()));
    }
    stream.write_all(&[VERSION, BY_PASSWORD]).await?;
    if stream.read_u8().await? != LOGIN_VERSION {
        return Err(Ended::Gone("a client's log-in is not that of RFC 1929".into()));
    }
    let (user, password) = (counted(stream).await?, counted(stream).await?);
    if credential.admits(user.expose(), password.expose()) {
        stream.write_all(&[LOGIN_VERSION, 0]).await?;
        return Ok(());
    }
    tokio::time::sleep(LOGIN_PAUSE).await;
    stream.write_all(&[LOGIN_VERSION, 1]).await?;
    Err(Ended::Gone("a client has a wrong user or password".into()))
}

/// Bytes with their number in front.
async fn counted(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Secret<Vec<u8>>> {
    let mut bytes = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(Secret::new(bytes))
}

/// The request: where to.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Result<Destination, Ended> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [version, command, _reserved, kind] = head;
    if version != VERSION {
        return Err(Ended::Gone("a client's request is not SOCKS5".into()));
    }
    let host = match kind {
        IPV4 => Ipv4Addr::from_bits(stream.read_u32().await?).to_string(),
        IPV6 => Ipv6Addr::from_bits(stream.read_u128().await?).to_string(),
        DOMAIN => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            // What is no text is no name either; it is refused as one.
            String::from_utf8_lossy(&name).into_owned()
        }
        other => {
            let why = format!("a client asks for an address of kind {other}");
            return Err(Ended::Told(Reply::AddressNotSupported, why));
        }
    };
    let port = stream.read_u16().await?;
    if command != CONNECT {
        let why = format!("a client asks for command {command}, and there is only CONNECT");
        return Err(Ended::Told(Reply::CommandNotSupported, why));
    }
    Destination::new(&host, port).map_err(|why| Ended::Told(Reply::NotAllowed, why.to_string()))
}

/// What a client is told of a stream that could not be opened.
fn reply_to(why: &OpenError) -> Reply {
    match why {
        OpenError::Host(error) => match error.class() {
            Class::Usage => Reply::NotAllowed,
            Class::NotFound => Reply::HostUnreachable,
            Class::Unreachable => Reply::NetworkUnreachable,
            _ => Reply::Failed,
        },
        OpenError::Dial { why, .. } => match why {
            DialError::NotAllowed { .. } => Reply::NotAllowed,
            DialError::NotReady { .. } | DialError::RouterOffline { .. } => Reply::NetworkUnreachable,
            DialError::NoRoute { .. } | DialError::Timeout { .. } => Reply::HostUnreachable,
            DialError::Refused { .. } => Reply::Refused,
            DialError::TooMany { .. } | DialError::Io { .. } => Reply::Failed,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn credential() -> Credential {
        Credential::new(&"a".parse().expect("an id"), Secret::new("pass".into()))
    }

    /// What is answered to these bytes of a log-in, and how it ended.
    async fn logged_in(bytes: &[u8]) -> (Vec<u8>, Result<(), Ended>) {
        let (mut client, mut near) = tokio::io::duplex(1024);
        client.write_all(bytes).await.expect("room");
        client.shutdown().await.expect("ended");
        let ended = log_in(&mut near, &credential()).await;
        drop(near);
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.expect("read");
        (said, ended)
    }

    #[tokio::test(start_paused = true)]
    async fn only_user_and_password_log_in() {
        let (said, ended) = logged_in(b"\x05\x02\x00\x02\x01\x01a\x04pass").await;
        assert_eq!(said, [5, 2, 1, 0]);
        ended.expect("logged in");
        for (bytes, told) in [
            (&b"\x05\x01\x02\x01\x01a\x04Pass"[..], &[5, 2, 1, 1][..]),
            (b"\x05\x01\x02\x01\x00\x00", &[5, 2, 1, 1]),
            (b"\x05\x01\x00", &[5, 0xff]),
            (b"\x05\x00", &[5, 0xff]),
            (b"\x05\x01\x02\x05\x01a\x04pass", &[5, 2]),
            (b"\x04\x01\x00\x50\x0a\x60\x00\x50\x00", &[]),
            (b"GET / HTTP/1.1\r\n\r\n", &[]),
            (b"\x05\x01\x02\x01\x01a\x04pas", &[5, 2]),
        ] {
            let (said, ended) = logged_in(bytes).await;
            assert_eq!(said, told, "{bytes:?}");
            assert!(ended.is_err(), "{bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_password_is_answered_late() {
        let begun = tokio::time::Instant::now();
        logged_in(b"\x05\x01\x02\x01\x01a\x04pass").await.1.expect("logged in");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        logged_in(b"\x05\x01\x02\x01\x01a\x04Pass").await.1.expect_err("wrong");
        assert_eq!(begun.elapsed(), LOGIN_PAUSE);
    }

    async fn requested(bytes: &[u8]) -> Result<String, Option<Reply>> {
        let mut bytes = bytes;
        match request(&mut bytes).await {
            Ok(to) => Ok(to.to_string()),
            Err(Ended::Told(reply, _)) => Err(Some(reply)),
            Err(Ended::Gone(_)) => Err(None),
        }
    }

    #[tokio::test]
    async fn requests_name_addresses_and_names() {
        for (bytes, to) in [
            (&b"\x05\x01\x00\x01\x0a\x60\x00\x50\x00\x50"[..], Ok("10.96.0.80:80")),
            (b"\x05\x01\x00\x03\x0cecho.default\x1f\x90", Ok("echo.default:8080")),
            (b"\x05\x01\x00\x03\x0a10.96.0.80\x00\x50", Ok("10.96.0.80:80")),
            (b"\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50", Ok("[::1]:80")),
            (b"\x05\x01\x00\x03\x09localhost\x00\x50", Err(Some(Reply::NotAllowed))),
            (b"\x05\x01\x00\x03\x00\x00\x50", Err(Some(Reply::NotAllowed))),
            (b"\x05\x01\x00\x03\x03a\xff.\x00\x50", Err(Some(Reply::NotAllowed))),
            (b"\x05\x01\x00\x01\x0a\x60\x00\x50\x00\x00", Err(Some(Reply::NotAllowed))),
            (b"\x05\x02\x00\x01\x0a\x60\x00\x50\x00\x50", Err(Some(Reply::CommandNotSupported))),
            (b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", Err(Some(Reply::CommandNotSupported))),
            (b"\x05\x01\x00\x05", Err(Some(Reply::AddressNotSupported))),
            (b"\x04\x01\x00\x01", Err(None)),
            (b"\x05\x01\x00", Err(None)),
        ] {
            assert_eq!(requested(bytes).await.as_deref(), to.as_deref(), "{bytes:?}");
        }
    }

    #[test]
    fn no_bytes_panic() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        proptest::proptest!(|(bytes: Vec<u8>)| {
            let _ = runtime.block_on(requested(&bytes));
        });
    }

    #[test]
    fn what_failed_is_told_by_its_number() {
        let target = "10.96.0.1:1".parse().expect("a target");
        let dial = |why| reply_to(&OpenError::Dial { name: None, why });
        assert_eq!(dial(DialError::NotAllowed { target, allowed: String::new() }), Reply::NotAllowed);
        assert_eq!(dial(DialError::Refused { target }), Reply::Refused);
        assert_eq!(dial(DialError::Timeout { target, after: Duration::ZERO }), Reply::HostUnreachable);
        assert_eq!(dial(DialError::NotReady { state: String::new() }), Reply::NetworkUnreachable);
        let host = |class| reply_to(&OpenError::Host(crate::HostError::new(class, "")));
        assert_eq!(host(Class::Usage), Reply::NotAllowed, "a name that leads out of the cluster");
        assert_eq!(host(Class::NotFound), Reply::HostUnreachable, "a name that is not there");
    }
}
