//! The demo page: the files of `static/`, built into the binary, or those of a folder in their
//! place.

use std::{path::Path, time::UNIX_EPOCH};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
};
use rust_embed::RustEmbed;
use warp::{
    Filter, Rejection,
    filters::{BoxedFilter, fs::File},
    path::Tail,
    reject,
    reply::{Reply, Response},
};

#[derive(RustEmbed)]
#[folder = "static"]
struct Embedded;

/// The built-in files, by the path that is left.
pub(crate) fn embedded() -> BoxedFilter<(Response,)> {
    warp::get()
        .or(warp::head())
        .unify()
        .and(warp::path::tail())
        .and(warp::header::headers_cloned())
        .and_then(async |path: Tail, request: HeaderMap| {
            let path = Some(path.as_str())
                .filter(|path| !path.is_empty())
                .unwrap_or("index.html");
            let file = Embedded::get(path).ok_or_else(reject::not_found)?;
            let hash = &file.metadata.sha256_hash()[..16];
            let etag: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            let mime = file.metadata.mimetype().to_owned();
            let response = warp::reply::with_header(file.data.into_owned(), CONTENT_TYPE, mime);
            Ok::<_, Rejection>(finish(response.into_response(), Some(etag), &request))
        })
        .boxed()
}

/// The files of `folder`, by the path that is left.
pub(crate) fn folder(folder: &Path) -> BoxedFilter<(Response,)> {
    warp::fs::dir(folder.to_owned())
        .and(warp::header::headers_cloned())
        .then(async |file: File, request: HeaderMap| {
            let etag = etag_of(file.path()).await;
            finish(file.into_response(), etag, &request)
        })
        .boxed()
}

/// A tag that changes with the file's size and time of change.
async fn etag_of(path: &Path) -> Option<String> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{:x}-{:x}", modified.as_nanos(), metadata.len()))
}

/// Adds what every file gets; answers 304 to who has it already (RFC 9110, section 13.1.2).
fn finish(mut response: Response, etag: Option<String>, request: &HeaderMap) -> Response {
    let headers = response.headers_mut();
    // Always asked for again, and seldom sent again.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|mime| mime.to_str().ok());
    if let Some(mime) = text.filter(|mime| mime.starts_with("text/") && !mime.contains("charset")) {
        let mime = HeaderValue::try_from(format!("{mime}; charset=utf-8"));
        headers.insert(CONTENT_TYPE, mime.expect("a MIME type is a header value"));
    }
    let Some(etag) = etag.map(|etag| format!("\"{etag}\"")) else {
        return response;
    };
    let known = request
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag == etag);
    headers.insert(
        ETAG,
        HeaderValue::try_from(etag).expect("hexadecimal is a header value"),
    );
    if known && response.status().is_success() {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Default::default();
    }
    response
}
