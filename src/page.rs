//! The demo page: the files of `static/`, built into the binary, or those of a folder in their
//! place.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
};
use percent_encoding::percent_decode_str;
use rust_embed::RustEmbed;
use sha1::{Digest, Sha1};
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    path::Tail,
    reject,
    reply::{Reply, Response},
};

/// The largest file of a folder that is served, in bytes: a file is read whole.
const MAX_FILE_BYTES: u64 = 64 << 20;

#[derive(RustEmbed)]
#[folder = "static"]
struct Embedded;

/// The files of `folder`, or the built-in ones, by the path that is left.
pub(crate) fn files(folder: Option<PathBuf>) -> BoxedFilter<(Response,)> {
    warp::get()
        .or(warp::head())
        .unify()
        .and(warp::path::tail())
        .and(warp::header::headers_cloned())
        .and_then(move |path: Tail, request: HeaderMap| {
            let folder = folder.clone();
            async move {
                let path = percent_decode_str(path.as_str()).decode_utf8_lossy();
                let path = if path.is_empty() {
                    "index.html"
                } else {
                    &*path
                };
                let file = match folder {
                    Some(folder) => read(&folder, path).await.map(Cow::Owned),
                    None => Embedded::get(path).map(|file| file.data),
                };
                let file = file.ok_or_else(reject::not_found)?;
                Ok::<_, Rejection>(response(path, file, &request))
            }
        })
        .boxed()
}

/// Reads a file of `folder`; there is none where it is no plain file, too large, or outside, be it
/// by `..` or by a link.
async fn read(folder: &Path, path: &str) -> Option<Vec<u8>> {
    let folder = tokio::fs::canonicalize(folder).await.ok()?;
    let file = tokio::fs::canonicalize(folder.join(path)).await.ok()?;
    let metadata = tokio::fs::metadata(&file).await.ok()?;
    let may = file.starts_with(folder) && metadata.is_file() && metadata.len() <= MAX_FILE_BYTES;
    if may {
        tokio::fs::read(file).await.ok()
    } else {
        None
    }
}

/// The file, or 304 for who has it already (RFC 9110, section 13.1.2).
fn response(path: &str, file: Cow<'static, [u8]>, request: &HeaderMap) -> Response {
    let hash: String = Sha1::digest(&file)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let etag = format!("\"{hash}\"");
    let known = request
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag == etag);
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        file.into_owned().into_response()
    };
    let headers = response.headers_mut();
    let mut mime = mime_guess::from_path(path)
        .first_or_octet_stream()
        .to_string();
    if mime.starts_with("text/") {
        mime += "; charset=utf-8";
    }
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::try_from(mime).expect("a MIME type is ASCII"),
    );
    headers.insert(
        ETAG,
        HeaderValue::try_from(etag).expect("hexadecimal is ASCII"),
    );
    // Always asked for again, and seldom sent again.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
