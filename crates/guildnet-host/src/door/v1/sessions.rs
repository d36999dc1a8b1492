//! Signing a browser in and out. The rules are `door/session.rs`'s, and who may ask at all is the gate's.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use guildnet_model::Secret;
use jiff::Timestamp;
use rand::{TryRngCore as _, rngs::OsRng};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::small;
use crate::{
    SessionInfo,
    door::{
        gate::{COOKIE, Pass},
        problem::Problem,
        routes::Behind,
        session::{Bits, CODE_LIFE, LIFE, Refused},
    },
};

/// Largest body of a login, whose sender has shown nothing yet: a code and what stands around it.
const LOGIN_LIMIT: usize = 1024;

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new()
        .routes(routes!(make_code))
        .routes(routes!(login))
        .routes(routes!(logout))
        .routes(routes!(sessions, revoke_all))
        .routes(routes!(revoke))
}

/// A one-time code.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LoginCode {
    /// Opens one session.
    pub(crate) code: String,
    /// Seconds for which it is good.
    pub(crate) expires_in_secs: i64,
}

/// What is exchanged for a session.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Login {
    /// The one-time code.
    code: String,
}

/// What the page keeps of its session.
#[derive(Serialize, ToSchema)]
struct LoggedIn {
    /// To be sent with every request, as `X-Guildnet-Key`. The page keeps it where no other origin can read it.
    key: String,
}

/// How many sessions were ended.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Revoked {
    /// The number.
    pub(crate) revoked: usize,
}

/// Make a one-time code for a browser
///
/// Opens one session within a minute. By the token only; a few may wait, one more ends the oldest.
#[utoipa::path(
    post, path = "/api/v1/login-codes", tag = "sessions", responses((status = CREATED, body = LoginCode)), security(("token" = [])),
)]
async fn make_code(
    State(behind): State<Behind>,
    Extension(pass): Extension<Pass>,
) -> Result<(StatusCode, Json<LoginCode>), Problem> {
    // The gate has seen to it; a session must not be able to make another.
    if pass != Pass::Token {
        return Err(Problem::new(StatusCode::FORBIDDEN, "wrong_scope", "a code is made with the token only"));
    }
    let code = behind.sessions().make_code(Timestamp::now(), bits()?);
    Ok((StatusCode::CREATED, Json(LoginCode { code: code.expose().clone(), expires_in_secs: CODE_LIFE.as_secs() })))
}

/// Sign in with a one-time code
///
/// From the Host App's own page only. The session is the cookie `__Host-guildnet` and the key in the answer, both; it ends after 12 hours
/// without use, after 7 days, and with the Host App.
#[utoipa::path(
    post, path = "/api/v1/login", tag = "sessions", request_body = Login, security(()),
    responses((status = OK, body = LoggedIn, description = "Signed in", headers(("set-cookie" = String, description = "The session")))),
)]
async fn login(State(behind): State<Behind>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    // A form of another page can't send this kind without asking first, which is refused.
    let json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !json {
        let detail = "the body is to be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_kind", detail));
    }
    let asked: Login = small(body, LOGIN_LIMIT).await?;
    let agent = headers.get(header::USER_AGENT).and_then(|name| name.to_str().ok()).unwrap_or_default();
    let opened = behind.sessions().login(&asked.code, agent, Timestamp::now(), [bits()?, bits()?]);
    match opened {
        Ok(opened) => {
            tracing::info!("a browser signed in");
            let cookie = set_cookie(&opened.cookie, LIFE.as_secs())?;
            Ok((cookie, Json(LoggedIn { key: opened.key.expose().clone() })).into_response())
        }
        Err(refused) => {
            // The others can be repeated without end.
            if refused == Refused::Wrong {
                tracing::warn!("somebody tried to sign in with a code that is wrong, used or too old");
            }
            Err(turned_away(refused))
        }
    }
}

fn turned_away(refused: Refused) -> Problem {
    let hint = "make a new one: guildnet ui";
    match refused {
        Refused::Wrong => {
            Problem::new(StatusCode::FORBIDDEN, "wrong_code", "the code is wrong, used or too old").with_hint(hint)
        }
        Refused::TooMany(seconds) => {
            let detail = format!("too many wrong codes; wrong ones are looked at again in {seconds} s");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_codes", detail).with_hint(hint)
        }
    }
}

/// Sign out
///
/// Ends the session that asks.
#[utoipa::path(post, path = "/api/v1/logout", tag = "sessions", responses((status = NO_CONTENT, description = "Signed out")))]
async fn logout(State(behind): State<Behind>, Extension(pass): Extension<Pass>) -> Result<Response, Problem> {
    if let Pass::Session(id) = pass {
        behind.sessions().revoke(&id);
    }
    Ok((StatusCode::NO_CONTENT, set_cookie(&Secret::new(String::new()), 0)?).into_response())
}

/// All sessions, the newest first
#[utoipa::path(get, path = "/api/v1/sessions", tag = "sessions", responses((status = OK, body = [SessionInfo])))]
async fn sessions(State(behind): State<Behind>, Extension(pass): Extension<Pass>) -> Json<Vec<SessionInfo>> {
    let current = if let Pass::Session(id) = &pass { Some(id.as_str()) } else { None };
    Json(behind.sessions().list(current, Timestamp::now()))
}

/// End one session
#[utoipa::path(
    delete, path = "/api/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path, description = "The session's id")),
    responses((status = NO_CONTENT, description = "Ended")),
)]
async fn revoke(State(behind): State<Behind>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    if behind.sessions().revoke(&id) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no session of that id")
        .with_hint("list them: guildnet sessions"))
}

/// End all sessions
///
/// Codes that wait to be used end too.
#[utoipa::path(delete, path = "/api/v1/sessions", tag = "sessions", responses((status = OK, body = Revoked)))]
async fn revoke_all(State(behind): State<Behind>) -> Json<Revoked> {
    Json(Revoked { revoked: behind.sessions().revoke_all(Timestamp::now()) })
}

/// The header that sets the session's cookie, for so many seconds.
fn set_cookie(value: &Secret<String>, seconds: i64) -> Result<[(HeaderName, HeaderValue); 1], Problem> {
    let text = format!("{COOKIE}={}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={seconds}", value.expose());
    let mut cookie = HeaderValue::try_from(text)
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the cookie can't be sent"))?;
    cookie.set_sensitive(true);
    Ok([(header::SET_COOKIE, cookie)])
}

fn bits() -> Result<Bits, Problem> {
    let mut bits = [0; 32];
    OsRng.try_fill_bytes(&mut bits).map_err(|why| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", format!("no random numbers: {why}"))
    })?;
    Ok(bits)
}
