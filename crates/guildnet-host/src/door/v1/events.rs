//! What happens, as it happens: server-sent events (WHATWG HTML, section 9.2).

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{self, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    door::{problem::Problem, routes::Behind},
    events::{Event, Follower, Next},
};

/// How often a stream without events says that it lives: below the minute after which some clients give up.
const ALIVE: Duration = Duration::from_secs(15);
/// How long a client waits before it comes again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(events))
}

/// What happens from now on, as server-sent events
///
/// The first is `open`; read what you need after it came. Then `cluster`, `clusters`, `job`, each with what changed. With
/// `Last-Event-ID` it goes on after that event; `missed` says that some are no longer kept and everything is to be read again.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen")),
    responses((status = OK, body = Event, content_type = "text/event-stream")),
)]
async fn events(
    State(behind): State<Behind>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Problem> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    // What is no id of ours is of another life: something was missed.
    let after = last.filter(|id| !id.is_empty()).map(|id| id.parse().unwrap_or_default());
    let follower = behind.api.events().follow(after);
    let first = sse::Event::default().event("open").id(follower.place().to_string()).retry(RETRY).data("{}");
    let rest = stream::unfold((follower, behind.stopping), async |(mut follower, stopping)| {
        let next = stopping.run_until_cancelled(follower.next()).await?;
        let event = told(next, &follower);
        Some((Ok(event), (follower, stopping)))
    });
    let all = futures_util::StreamExt::chain(stream::iter([Ok(first)]), rest);
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(ALIVE)))
}

fn told(next: Next, follower: &Follower) -> sse::Event {
    let event = sse::Event::default().id(follower.place().to_string());
    match next {
        Next::Missed => event.event("missed").data("{}"),
        Next::Event(happened) => {
            let data = serde_json::to_string(&happened).unwrap_or_else(|_| "{}".to_owned());
            event.event(happened.what.kind()).data(data)
        }
    }
}
