//! The type of TLS in a build without the feature `tls`: it has no values.

use std::io;

use crate::{config::Serving, web::Socket};

pub(crate) enum Tls {}

impl Tls {
    pub(crate) fn new(_: &Serving) -> io::Result<Option<Tls>> {
        Ok(None)
    }

    pub(crate) fn reload(&self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) async fn accept(&self, _: Socket) -> io::Result<Socket> {
        match *self {}
    }
}
