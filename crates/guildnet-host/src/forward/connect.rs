//! HTTP `CONNECT` (RFC 9110 section 9.3.6) with Basic credentials (RFC 7617) in `Proxy-Authorization`: to addresses and names
//! of the cluster, and no other method. One request for each connection.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use guildnet_model::{Class, DialError, Explain as _, Io, Secret};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{
    LOGIN_PAUSE, LOGIN_TIME,
    credential::Credential,
    entrance::{Gate, Place, Unproved},
};
use crate::names::{Destination, OpenError};

/// Bytes of a request's head, and its headers: what browsers send is a tenth of it.
const HEAD_LIMIT: usize = 16 * 1024;
const HEADER_COUNT: usize = 64;

type Body = BoxBody<Bytes, Infallible>;

/// A stream that was opened, for a client that has still to switch over to it.
struct Opened {
    near: OnUpgrade,
    far: Box<dyn Io>,
    place: Place,
}

/// A request that was not fulfilled: what the client is told, and what is noted.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    why: String,
}

impl Refused {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Full::new(Bytes::from(format!("{}\n", self.why))).boxed());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        match self.status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                let wanted = HeaderValue::from_static("Basic realm=\"guildnet\", charset=\"UTF-8\"");
                headers.insert(header::PROXY_AUTHENTICATE, wanted);
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("CONNECT"));
            }
            _ => {}
        }
        response
    }
}

/// One client, from its request to the end of its stream.
///
/// # Errors
/// Why it got no stream, in words.
pub(super) async fn serve(gate: &Arc<Gate>, near: TcpStream, credential: &Credential) -> Result<(), String> {
    let (give_way, unproved) = gate.unproven();
    let unproved = Mutex::new(Some(unproved));
    let outcome: Mutex<Option<Result<Opened, String>>> = Mutex::new(None);
    let (unproved, outcome) = (&unproved, &outcome);
    let service = service_fn(move |request| async move {
        let answered = answer(gate, credential, unproved, request).await;
        let (response, kept) = match answered {
            Ok(opened) => (Response::new(Empty::new().boxed()), Ok(opened)),
            Err(refused) => {
                let why = refused.why.clone();
                (refused.into_response(), Err(why))
            }
        };
        *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok::<_, Infallible>(response)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(LOGIN_TIME)
        .max_headers(HEADER_COUNT)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false);
    let serving = pin!(builder.serve_connection(TokioIo::new(near), service).with_upgrades());
    match give_way.run_until_cancelled(serving).await {
        Some(Ok(())) => {}
        Some(Err(why)) => return Err(format!("a client's request is none: {why}")),
        None => return Err("too many clients that do not log in: the oldest had to go".into()),
    }
    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    match outcome {
        Some(Ok(Opened { near, far, place })) => {
            // One that went before it was answered is nobody's trouble.
            if let Ok(near) = near.await {
                gate.carry(TokioIo::new(near), far, place).await;
            }
            Ok(())
        }
        Some(Err(why)) => Err(why),
        None => Ok(()),
    }
}

async fn answer(
    gate: &Arc<Gate>,
    credential: &Credential,
    unproved: &Mutex<Option<Unproved<'_>>>,
    mut request: Request<Incoming>,
) -> Result<Opened, Refused> {
    if request.method() != Method::CONNECT {
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this proxy takes CONNECT only"));
    }
    match proof(request.headers()) {
        Some((user, password)) if credential.admits(user.expose(), password.expose()) => {}
        Some(_) => {
            tokio::time::sleep(LOGIN_PAUSE).await;
            return Err(Refused::new(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "wrong user or password"));
        }
        None => return Err(Refused::new(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "user and password are missing")),
    }
    drop(unproved.lock().unwrap_or_else(PoisonError::into_inner).take());
    let authority = request.uri().authority().map(|a| a.as_str()).unwrap_or_default();
    let to: Destination = authority.parse().map_err(|why| Refused::new(StatusCode::BAD_REQUEST, format!("{why}")))?;
    let place = gate.enter().map_err(|why| Refused::new(StatusCode::SERVICE_UNAVAILABLE, why))?;
    let far = gate.open(&to).await.map_err(|why| Refused::new(status_of(&why), gate.words(why)))?;
    Ok(Opened { near: hyper::upgrade::on(&mut request), far, place })
}

/// User and password, as they were sent.
type Proof = (Secret<Vec<u8>>, Secret<Vec<u8>>);

/// The proof of a request: of exactly one header, as RFC 7617 section 2 has them.
fn proof(headers: &HeaderMap) -> Option<Proof> {
    let mut all = headers.get_all(header::PROXY_AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    let (scheme, encoded) = only.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Secret::new(BASE64_STANDARD.decode(encoded.trim()).ok()?);
    let colon = decoded.expose().iter().position(|b| *b == b':')?;
    let (user, password) = decoded.expose().split_at(colon);
    Some((Secret::new(user.to_vec()), Secret::new(password[1..].to_vec())))
}

/// What a client is told of a stream that could not be opened.
fn status_of(why: &OpenError) -> StatusCode {
    match why {
        OpenError::Host(error) => match error.class() {
            Class::Usage => StatusCode::FORBIDDEN,
            Class::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        },
        OpenError::Dial { why, .. } => match why {
            DialError::NotAllowed { .. } => StatusCode::FORBIDDEN,
            DialError::NotReady { .. } | DialError::TooMany { .. } => StatusCode::SERVICE_UNAVAILABLE,
            DialError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proven(values: &[&str]) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::PROXY_AUTHORIZATION, value.parse().expect("a header"));
        }
        let text = |bytes: &Secret<Vec<u8>>| String::from_utf8(bytes.expose().clone()).expect("text");
        proof(&headers).map(|(user, password)| (text(&user), text(&password)))
    }

    #[test]
    fn user_and_password_are_read_from_exactly_one_header() {
        let good = Some(("a".to_owned(), "p:ss".to_owned()));
        assert_eq!(proven(&["Basic YTpwOnNz"]), good, "a:p:ss");
        assert_eq!(proven(&["bAsIc YTpwOnNz"]), good);
        for wrong in [&[][..], &["Basic YTpwOnNz", "Basic YTpwOnNz"], &["Bearer YTpwOnNz"], &["Basic"], &["Basic !"]] {
            assert_eq!(proven(wrong), None, "{wrong:?}");
        }
        assert_eq!(proven(&["Basic YWI="]), None, "no colon");
    }

    #[test]
    fn what_failed_is_told_by_its_status() {
        let target = "10.96.0.1:1".parse().expect("a target");
        let dial = |why| status_of(&OpenError::Dial { name: None, why }).as_u16();
        assert_eq!(dial(DialError::NotAllowed { target, allowed: String::new() }), 403);
        assert_eq!(dial(DialError::Refused { target }), 502);
        assert_eq!(dial(DialError::Timeout { target, after: std::time::Duration::ZERO }), 504);
        assert_eq!(dial(DialError::NotReady { state: String::new() }), 503);
        let host = |class| status_of(&OpenError::Host(crate::HostError::new(class, ""))).as_u16();
        assert_eq!(host(Class::Usage), 403, "a name that leads out of the cluster");
        assert_eq!(host(Class::NotFound), 502, "a name that is not there");
    }
}
