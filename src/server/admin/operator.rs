//! Who may use the admin API.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header::ORIGIN};
use subtle::ConstantTimeEq;
use warp::{
    Filter, Rejection,
    reject::{self, Reject},
};

use super::answer::ApiError;
use crate::{access::bearer, server::handle::Handle, state::Shared, web::host};

/// Headers that proxies add, besides those that begin with `x-forwarded-`.
const PROXY_HEADERS: [&str; 4] = ["forwarded", "via", "x-real-ip", "cf-connecting-ip"];

/// How the site that made a browser send a request relates to this one (W3C Fetch Metadata, section
/// 2.3).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Its values for requests of this site's own pages, and for requests that the user made, such as by
/// typing the URL.
const OWN_SITES: [&str; 2] = ["same-origin", "none"];

/// Why a request is not an operator's.
#[derive(Debug)]
pub(super) enum Unauthorized {
    /// It has no secret, or a wrong one.
    Secret,
    /// A web page of another site sent it.
    OtherSite,
    /// Its `Host` is a name other than localhost. A page of another site can have such a name resolve
    /// to this machine (DNS rebinding).
    HostName,
    /// It came through a proxy.
    Proxy,
}

impl Reject for Unauthorized {}

impl From<&Unauthorized> for ApiError {
    fn from(unauthorized: &Unauthorized) -> ApiError {
        let forbidden = |message| ApiError::new(StatusCode::FORBIDDEN, "forbidden", message);
        match unauthorized {
            Unauthorized::Secret => ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "send the secret in --admin-token-file as Authorization: Bearer <secret>",
            ),
            Unauthorized::OtherSite => forbidden(
                "pages of other sites may not use the admin API: use the page at / or a program",
            ),
            Unauthorized::HostName => forbidden(
                "without --admin-token-file the admin API answers only to localhost and loopback \
                 addresses: set it to use another name",
            ),
            Unauthorized::Proxy => {
                forbidden("the request came through a proxy: set --admin-token-file to allow that")
            }
        }
    }
}

/// Passes requests of operators on, and rejects others as [`Unauthorized`].
///
/// Operators have the secret of `--admin-token-file` or, if there is none, are on this machine. In
/// both cases a browser may send requests for web pages of other sites; these are recognized by
/// their `Origin` and by `Sec-Fetch-Site`, because requests for images, scripts, links and frames
/// have no origin. Without a secret, requests for a host name other than localhost and requests that
/// came through a proxy, as far as its headers show that, are rejected.
pub(super) fn authorize(
    handle: &Handle,
) -> impl Filter<Extract = (), Error = Rejection> + Clone + use<> {
    let handle = handle.clone();
    warp::header::headers_cloned()
        .and_then(move |headers: HeaderMap| {
            let checked = check(&handle, &headers);
            async move { checked.map_err(reject::custom) }
        })
        .untuple_one()
}

fn check(shared: &Shared, headers: &HeaderMap) -> Result<(), Unauthorized> {
    // The listener has already refused an invalid `Host`.
    let host = host::optional(headers).ok().flatten();
    let is_own_origin = |origin: &HeaderValue| {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        origin.is_some_and(|origin| {
            origin.authority().is_some() && origin.authority() == host.as_ref()
        })
    };
    let is_own_site = |site: &HeaderValue| OWN_SITES.iter().any(|own| site == own);
    // Browsers send one origin: several prove nothing.
    let mut origins = headers.get_all(ORIGIN).iter();
    let is_own_page = origins.next().is_none_or(is_own_origin) && origins.next().is_none();
    if !is_own_page || !headers.get_all(SEC_FETCH_SITE).iter().all(is_own_site) {
        return Err(Unauthorized::OtherSite);
    }
    match &shared.admin_token {
        Some(token) => {
            let given = bearer(headers).unwrap_or_default();
            let is_same = given.as_bytes().ct_eq(token.get().expose());
            bool::from(is_same)
                .then_some(())
                .ok_or(Unauthorized::Secret)
        }
        None if headers.keys().any(|name| is_proxy_header(name.as_str())) => {
            Err(Unauthorized::Proxy)
        }
        None => {
            let host = host
                .as_ref()
                .map(|host| host.host().trim_matches(['[', ']']));
            let is_loopback = host.is_some_and(|host| {
                let address = host.parse::<IpAddr>();
                host == "localhost" || address.is_ok_and(|address| address.is_loopback())
            });
            is_loopback.then_some(()).ok_or(Unauthorized::HostName)
        }
    }
}

fn is_proxy_header(name: &str) -> bool {
    name.starts_with("x-forwarded-") || PROXY_HEADERS.contains(&name)
}
