//! Static files: those of `static/`, which are embedded into the binary, or those of a folder.

use std::{
    path::{Component, Path, PathBuf},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_ENCODING,
        CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
        REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
    },
};
use percent_encoding::percent_decode_str;
use tokio::fs;
use tokio_util::io::ReaderStream;
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    path::Tail,
    reject,
    reply::{Reply, Response},
};

use super::encoding::Encoding;

/// The headers of the embedded pages. A page loads nothing from other sites; no text that it shows can
/// become markup or script (Content Security Policy Level 3, Trusted Types); its URL, which names the
/// room, is not sent as referrer. The last two are for the demo page only: it alone, and none of its
/// frames, may use camera, microphone and screen, and pages of other sites may import its modules.
const PAGE_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
        ),
    ),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(self), microphone=(self), display-capture=(self)"),
    ),
    (ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
];

/// The folder with a dot that is public all the same (RFC 8615).
const WELL_KNOWN: &str = ".well-known";

/// The folder of the admin page among the embedded files.
const ADMIN_FOLDER: &str = "admin/";

/// A file that is found.
struct File {
    /// Identifies the contents and their encoding, without quotes.
    etag: String,
    response: Response,
}

/// Where files come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// The embedded demo page.
    DemoPage,
    /// The embedded admin page.
    AdminPage,
    /// A folder of the operator's.
    Folder(PathBuf),
}

/// Answers requests for the files of a source. The rest of the path is the name of the file.
pub(crate) fn files(source: Source) -> BoxedFilter<(Response,)> {
    warp::get()
        .or(warp::head())
        .unify()
        .and(warp::path::tail())
        .and(warp::header::headers_cloned())
        .and_then(move |path: Tail, request: HeaderMap| {
            let source = source.clone();
            async move {
                let mut path = percent_decode_str(path.as_str()).decode_utf8_lossy();
                if path.is_empty() || path.ends_with('/') {
                    path += "index.html";
                }
                let file = match &source {
                    Source::Folder(folder) => open(folder, &path).await,
                    // The admin page uses the style sheet and modules of the demo page.
                    Source::AdminPage => embedded(&format!("{ADMIN_FOLDER}{path}"), &request)
                        .or_else(|| embedded(&path, &request)),
                    Source::DemoPage if path.starts_with(ADMIN_FOLDER) => None,
                    Source::DemoPage => embedded(&path, &request),
                };
                let file = file.ok_or_else(reject::not_found)?;
                let mut response = respond(&path, file, &request);
                let headers = response.headers_mut();
                if !matches!(source, Source::Folder(_)) {
                    headers.insert(VARY, ACCEPT_ENCODING.into());
                }
                match source {
                    Source::DemoPage => headers.extend(PAGE_HEADERS),
                    // Other sites may not import the modules of the admin page.
                    Source::AdminPage => headers.extend(PAGE_HEADERS.into_iter().take(2)),
                    Source::Folder(_) => {}
                }
                headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                Ok::<_, Rejection>(response)
            }
        })
        .boxed()
}

/// An embedded file, in the best encoding that the request accepts and that makes it smaller.
fn embedded(path: &str, request: &HeaderMap) -> Option<File> {
    let accepted = Encoding::accepted(request).into_iter();
    let (encoding, (etag, contents)) = accepted
        .chain([Encoding::Identity])
        .find_map(|encoding| Some((encoding, stored(path, encoding)?)))?;
    let mut response = Response::new(Bytes::from_static(contents).into());
    if encoding != Encoding::Identity {
        let name = HeaderValue::from_static(encoding.name());
        response.headers_mut().insert(CONTENT_ENCODING, name);
    }
    Some(File {
        etag: etag.to_owned(),
        response,
    })
}

/// A file of `static/` as the build script (`src/build.rs`) prepared it, with its ETag. `None` if there is no such
/// file, or if this encoding does not make it smaller.
fn stored(path: &str, encoding: Encoding) -> Option<(&'static str, &'static [u8])> {
    include!(concat!(env!("OUT_DIR"), "/embedded_files.rs"))
}

/// Opens a file of a folder. `None` unless it is a regular file inside the folder, after `..` and
/// symbolic links are resolved, and neither the requested path nor the resolved one is hidden.
async fn open(folder: &Path, path: &str) -> Option<File> {
    let folder = fs::canonicalize(folder).await.ok()?;
    let asked = Path::new(path);
    let path = fs::canonicalize(folder.join(asked)).await.ok()?;
    let inside = path.strip_prefix(folder).ok()?;
    if is_hidden(asked) || is_hidden(inside) || !fs::metadata(&path).await.ok()?.is_file() {
        return None;
    }
    let file = fs::File::open(path).await.ok()?;
    let metadata = file.metadata().await.ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let mut response = warp::reply::stream(ReaderStream::new(file)).into_response();
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, metadata.len().into());
    Some(File {
        etag: format!("{:x}-{:x}", modified.as_nanos(), metadata.len()),
        response,
    })
}

/// Whether a name in the path begins with a dot: such files and folders, like `.env` and `.git`, are
/// rarely meant to be published. `.well-known` at the top is.
fn is_hidden(path: &Path) -> bool {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    names.enumerate().any(|(index, name)| {
        let is_public = index == 0 && name == WELL_KNOWN;
        name.as_encoded_bytes().starts_with(b".") && !is_public
    })
}

/// Answers with the file, or with 304 if the client has it already (RFC 9110, section 13.1.2).
fn respond(path: &str, file: File, request: &HeaderMap) -> Response {
    let etag = format!("\"{}\"", file.etag);
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
        file.response
    };
    let headers = response.headers_mut();
    let mut mime = new_mime_guess::from_path(path)
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
        HeaderValue::try_from(etag).expect("the digits and names are ASCII"),
    );
    // Clients ask each time whether the file has changed; only then is it sent again.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
