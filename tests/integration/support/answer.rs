//! An HTTP answer.

use serde_json::Value;

/// An HTTP answer of the server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body, which must be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The status and the error code of an error, which must have a message.
    pub fn code(&self) -> (u16, String) {
        let error = self.json();
        assert!(!error["message"].as_str().unwrap().is_empty());
        (self.status, error["code"].as_str().unwrap().into())
    }
}
