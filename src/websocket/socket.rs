//! The upgraded connection, split into its two halves.

use std::sync::Arc;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_util::either::Either;

use super::{reader::Reader, stream::Half, writer::Writer};
#[cfg(feature = "tls")]
use crate::web::TlsStream;
use crate::{metrics::Traffic, web::Socket};

/// Splits an upgraded connection into its halves. The reader accepts messages of at most
/// `max_message_bytes`.
pub(crate) fn split(
    upgraded: Upgraded,
    max_message_bytes: usize,
    traffic: &Arc<Traffic>,
) -> (Reader, Writer) {
    let (reader, writer, early) = match upgraded.downcast::<TokioIo<Socket>>() {
        Ok(parts) => {
            let early = Vec::from(parts.read_buf);
            match parts.io.into_inner().into_inner() {
                Ok(stream) => {
                    let (reader, writer) = stream.into_split();
                    (Either::Left(reader), Either::Left(writer), early)
                }
                Err(socket) => {
                    let halves = Half::split(socket);
                    let writer = Either::Right(Box::new(halves.1) as _);
                    (Either::Right(halves.0), writer, early)
                }
            }
        }
        Err(upgraded) => {
            #[cfg(not(feature = "tls"))]
            let (halves, early) = (Half::split(TokioIo::new(upgraded)), Vec::new());
            #[cfg(feature = "tls")]
            let (halves, early) = match upgraded.downcast::<TokioIo<TlsStream>>() {
                Ok(parts) => (Half::split(parts.io.into_inner()), parts.read_buf.into()),
                Err(upgraded) => (Half::split(TokioIo::new(upgraded)), Vec::new()),
            };
            let writer = Either::Right(Box::new(halves.1) as _);
            (Either::Right(halves.0), writer, early)
        }
    };
    traffic.received_bytes.inc_by(early.len() as u64);
    let reader = Reader::new(reader, early.into(), max_message_bytes, traffic.clone());
    (reader, Writer::new(writer, traffic.clone()))
}
