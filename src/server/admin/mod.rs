//! The admin API: what the second listener answers to operators and to the application's backend.

mod answer;
mod history;
mod operator;
mod rooms;
mod routes;

pub(super) use self::routes::all;
