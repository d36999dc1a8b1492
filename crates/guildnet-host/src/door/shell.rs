//! The page at `/`: signs a browser in, shows the clusters, signs out. Three files that need no credential.
//!
//! They hold nothing secret and are the same for everybody; what they show, they ask the API for, with the session. No inline
//! script or style, nothing from elsewhere, no frame around it, no window of another page beside it (the headers below). The
//! page that people will work in takes its place here.

use axum::{
    Router,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, header};

use super::{gate::SHELL_PATHS, routes::Behind};

const PAGE: &str = include_str!("shell/index.html");
const SCRIPT: &str = include_str!("shell/shell.js");
const STYLE: &str = include_str!("shell/shell.css");

/// Sent with each of the files. `nosniff` and `no-store` are added to every answer of the door.
const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-embedder-policy"), "require-corp"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
];

/// The page and its files.
pub(super) fn routes() -> Router<Behind> {
    let [page, script, style] = SHELL_PATHS;
    Router::new()
        .route(page, get(async || file("text/html; charset=utf-8", PAGE)))
        .route(script, get(async || file("text/javascript; charset=utf-8", SCRIPT)))
        .route(style, get(async || file("text/css; charset=utf-8", STYLE)))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_nothing_inline_and_nothing_from_elsewhere() {
        for inline in ["<style", "style=\"", "onclick", "onload", "onerror", "javascript:", "://"] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert!(PAGE.contains("<script src=\"/shell.js\" defer></script>"), "a file, not a text");
        // The script makes no HTML of what it is told.
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!SCRIPT.contains(way), "{way}");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
