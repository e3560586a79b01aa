//! The URLs of other people's clients.

use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc};

use http::StatusCode;
use tokio::sync::Semaphore;
use warp::{
    Filter,
    filters::BoxedFilter,
    reply::{Reply, Response},
};

use super::{
    cross_origin::{check_page, readable},
    handle::Handle,
    handshake::{Handshake, Target, handshake},
};
use crate::{
    config::Dialect,
    dialects,
    protocol::{RoomName, SessionId},
    rooms::Busy,
    web::HttpError,
};

/// The key of PeerJS clients that name none.
const DEFAULT_KEY: &str = "peerjs";

/// How many lists of peers are made at once.
const LISTS: usize = 8;

/// The most sessions in a group.
const MAX_GROUP: u32 = 256;

/// The longest name of a room with groups, in bytes: the names of their rooms have the size and an id at the end.
const MAX_NAME_OF_GROUPS: usize = 64;

/// Answers requests for the URLs of the dialects that are served.
pub(super) fn all(handle: &Handle) -> BoxedFilter<(Response,)> {
    let served = &handle.config.serving.dialect;
    let nothing = warp::any().and_then(async || Err::<Response, _>(warp::reject::not_found()));
    let mut all = nothing.boxed();
    if served.contains(&Dialect::PeerJs) {
        all = all.or(peerjs(handle)).unify().boxed();
    }
    if served.contains(&Dialect::YWebrtc) || served.contains(&Dialect::Trystero) {
        all = all.or(topics(handle)).unify().boxed();
    }
    if served.contains(&Dialect::Matchbox) {
        all = all.or(matchbox(handle)).unify().boxed();
    }
    all
}

/// `/peerjs` and below. A client with `path: "/peerjs"` connects to `/peerjs/peerjs`, one without a path to `/peerjs`.
fn peerjs(handle: &Handle) -> BoxedFilter<(Response,)> {
    let with = {
        let handle = handle.clone();
        warp::any().map(move || handle.clone())
    };
    let get = warp::get().or(warp::head()).unify();
    let lists = Arc::new(Semaphore::new(LISTS));
    let session = warp::path!("peerjs" / "peerjs")
        .or(warp::path!("peerjs"))
        .unify()
        .and(handshake())
        .and(with.clone())
        .map(peerjs_session);
    let id = warp::path!("peerjs" / String / "id")
        .map(drop)
        .untuple_one()
        .or(warp::path!("peerjs" / "id"))
        .unify()
        .and(get)
        .and(handshake())
        .and(with.clone())
        .map(|handshake: Handshake, handle: Handle| {
            let id = SessionId::random().to_string();
            readable(&handle, &handshake.headers, id.into_response())
        });
    let peers = warp::path!("peerjs" / String / "peers")
        .or(warp::path!("peerjs" / "peers").map(|| DEFAULT_KEY.to_owned()))
        .unify()
        .and(get)
        .and(handshake())
        .and(with)
        .and(warp::any().map(move || lists.clone()))
        .then(peerjs_peers);
    session.or(id).unify().or(peers).unify().boxed()
}

/// A session of a PeerJS client, or what the server is.
fn peerjs_session(handshake: Handshake, handle: Handle) -> Response {
    if handshake.is_plain_get() {
        let about = serde_json::json!({
            "name": "anteroom",
            "description": "A server for PeerJS clients: connect with the option path set to /peerjs.",
            "website": "https://peerjs.com/",
        });
        return readable(
            &handle,
            &handshake.headers,
            warp::reply::json(&about).into_response(),
        );
    }
    let format = dialects::of(Some(Dialect::PeerJs));
    handshake.answer(&handle, format, |handshake| {
        let wrong = |message| HttpError::new(StatusCode::BAD_REQUEST, message);
        let query = &handshake.query;
        let [key, id, token] = ["key", "id", "token"].map(|name| query.get(name));
        let (Some(key), Some(id), Some(token)) = (key, id, token) else {
            return Err(wrong("No id, token, or key supplied to websocket server"));
        };
        let room = RoomName::new(&key).map_err(|_| wrong("Invalid key provided"))?;
        if !dialects::is_peerjs_id(&id) {
            return Err(wrong(
                "Invalid id provided: it must have letters and digits in groups, with a space, - or _ between two \
                 groups, and at most 128 of them",
            ));
        }
        Ok(Target {
            name: Some(id.into_owned()),
            token: Some(token.into_owned()),
            ..Target::of(room.in_dialect(Dialect::PeerJs))
        })
    })
}

/// The ids of all peers with a key, if clients may ask for them. As many are listed at once as `lists` has permits.
async fn peerjs_peers(
    key: String,
    handshake: Handshake,
    handle: Handle,
    lists: Arc<Semaphore>,
) -> Response {
    let listed = async {
        check_page(&handle, &handshake.headers)?;
        if !handle.config.serving.peerjs_discovery {
            let message =
                "clients may not ask for the peers: start the server with --peerjs-discovery";
            return Err(HttpError::new(StatusCode::UNAUTHORIZED, message));
        }
        handle.admission.check_rate(handshake.address(&handle))?;
        let room = RoomName::from_segment(&key)
            .map_err(|_| HttpError::new(StatusCode::BAD_REQUEST, "Invalid key provided"))?;
        let busy = || HttpError::unavailable("too many ask for the peers: try again later");
        let _permit = lists.try_acquire().map_err(|_| busy())?;
        let limit = handle.cluster.as_ref().map(|cluster| cluster.down);
        let room = room.in_dialect(Dialect::PeerJs);
        let sessions = handle.rooms.query(&room, limit.unwrap_or_default());
        let sessions = sessions.await.map_err(|Busy| busy())?;
        let ids: BTreeSet<&str> = sessions.iter().filter_map(|it| it.info.name()).collect();
        Ok(warp::reply::json(&ids).into_response())
    };
    let answer = listed.await.unwrap_or_else(Reply::into_response);
    readable(&handle, &handshake.headers, answer)
}

/// `/topics`: y-webrtc and trystero.
fn topics(handle: &Handle) -> BoxedFilter<(Response,)> {
    let handle = handle.clone();
    warp::path!("topics")
        .and(handshake())
        .map(move |handshake: Handshake| {
            if handshake.is_plain_get() {
                return "okay\n".into_response();
            }
            // A connection begins in no room, and shows with each message which of the two it speaks.
            let room = RoomName::nowhere(Dialect::YWebrtc);
            handshake.answer(&handle, dialects::of(room.dialect()), |handshake| {
                Ok(Target {
                    token: handshake.query.get("token").map(Into::into),
                    ..Target::of(room.clone())
                })
            })
        })
        .boxed()
}

/// `/matchbox` and `/matchbox/{room}`. Without a name, with or without a slash, it is the default room.
fn matchbox(handle: &Handle) -> BoxedFilter<(Response,)> {
    let handle = handle.clone();
    warp::path!("matchbox")
        .map(|| Ok(RoomName::default_room()))
        .or(warp::path!("matchbox" / String).map(|name: String| RoomName::from_segment(&name)))
        .unify()
        .and(handshake())
        .map(
            move |name: Result<RoomName, &'static str>, handshake: Handshake| {
                let format = dialects::of(Some(Dialect::Matchbox));
                handshake.answer(&handle, format, |handshake| {
                    let wrong = |message| HttpError::new(StatusCode::BAD_REQUEST, message);
                    let query = &handshake.query;
                    let room = name.map_err(wrong)?;
                    if room.as_str().contains('?') {
                        return Err(wrong("a room name of matchbox must not contain ?"));
                    }
                    if query.get("next").is_some() && room.as_str().len() > MAX_NAME_OF_GROUPS {
                        return Err(wrong("with next, a room name must have at most 64 bytes"));
                    }
                    let group_size = query.get("next").map(|next| {
                        let size: Option<NonZeroU32> = next.parse().ok();
                        size.filter(|size| size.get() <= MAX_GROUP)
                            .ok_or_else(|| wrong("next must be 1 to 256"))
                    });
                    let group_size = group_size.transpose()?;
                    Ok(Target {
                        token: query.get("token").map(Into::into),
                        group_size,
                        ..Target::of(room.in_dialect(Dialect::Matchbox))
                    })
                })
            },
        )
        .boxed()
}
