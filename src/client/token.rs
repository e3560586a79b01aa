//! Where the token of a session comes from.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::disconnect::Disconnect;

/// What the function returns.
type Answer = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// The token that admits to a room. It is never shown.
#[derive(Clone)]
pub(super) enum Token {
    None,
    Fixed(String),
    /// A function that is called before each connection.
    Fresh(Arc<dyn Fn() -> Answer + Send + Sync>),
}

impl Token {
    /// A token that a function returns.
    pub(super) fn fresh<F, T, E>(function: F) -> Token
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: fmt::Display,
    {
        Token::Fresh(Arc::new(move || {
            let token = function();
            Box::pin(async move { token.await.map_err(|error| error.to_string()) })
        }))
    }

    /// Whether another attempt has another token.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self, Token::Fresh(_))
    }

    /// The token for the next connection.
    pub(super) async fn get(&self, limit: Duration) -> Result<Option<String>, Disconnect> {
        match self {
            Token::None => Ok(None),
            Token::Fixed(token) => Ok(Some(token.clone())),
            Token::Fresh(function) => match timeout(limit, function()).await {
                Ok(token) => token.map(Some).map_err(Disconnect::Token),
                Err(_) => Err(Disconnect::Token(format!("no answer in {limit:.0?}"))),
            },
        }
    }
}
