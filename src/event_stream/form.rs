//! The forms in which an answer carries messages. No I/O.

use std::mem;

use http::{HeaderMap, HeaderValue, header::ACCEPT};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    protocol::{self, Resume},
    websocket::{Content, Frame},
};

/// How an answer carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As server-sent events, for as long as the connection lasts.
    Events,
    /// As one JSON object, once there is a message: long polling.
    Poll,
}

impl Form {
    /// The form that a request asks for; `None` if it asks for neither.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Form> {
        let accepted = headers.get_all(ACCEPT).into_iter();
        let accepted = accepted
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        accepted
            .filter_map(|range| {
                let media_type = range.split(';').next().unwrap_or_default().trim();
                match () {
                    () if media_type.eq_ignore_ascii_case("text/event-stream") => {
                        Some(Form::Events)
                    }
                    () if media_type.eq_ignore_ascii_case("application/json") => Some(Form::Poll),
                    () => None,
                }
            })
            .next()
    }

    /// The content type of the answer.
    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Form::Events => "text/event-stream",
            Form::Poll => "application/json",
        })
    }
}

/// An answer as far as it is made.
pub(super) struct Answer {
    form: Form,
    /// The number of messages of the session so far.
    count: u64,
    /// Messages that are not counted, which come first.
    uncounted: usize,
    /// What is made and not taken: the events, or the list of messages.
    content: Vec<u8>,
    session: Option<Box<RawValue>>,
    close: Option<Box<RawValue>>,
}

impl Answer {
    pub(super) fn new(form: Form) -> Answer {
        Answer {
            form,
            count: 0,
            uncounted: 0,
            content: Vec::new(),
            session: None,
            close: None,
        }
    }

    /// Notes that the client has received so many messages of the session. The next message is not counted.
    pub(super) fn continue_after(&mut self, received: u64) {
        self.count = received;
        self.uncounted = 1;
    }

    /// Adds how the session is resumed.
    pub(super) fn introduce(&mut self, resume: &Resume) {
        let json = json(resume);
        match self.form {
            Form::Events => self.event("session", &json),
            Form::Poll => self.session = Some(json),
        }
    }

    /// Adds a frame.
    pub(super) fn add(&mut self, frame: &Frame) {
        match frame.content() {
            Content::Message => self.add_message(frame),
            // A comment, which shows proxies that the connection is in use.
            Content::Ping if self.form == Form::Events => {
                self.content.extend_from_slice(b":\n\n");
            }
            Content::Ping | Content::Pong => {}
            Content::Close(status) => {
                #[derive(Serialize)]
                struct Close<'a> {
                    code: u16,
                    reason: &'a str,
                }
                let (code, reason) = status.unwrap_or((1000, ""));
                let json = json(&Close { code, reason });
                match self.form {
                    Form::Events => self.event("close", &json),
                    Form::Poll => self.close = Some(json),
                }
            }
        }
    }

    fn add_message(&mut self, frame: &Frame) {
        let json = protocol::to_json(frame);
        let is_counted = self.uncounted == 0;
        match is_counted {
            true => self.count += 1,
            false => self.uncounted -= 1,
        }
        match self.form {
            Form::Events => {
                if is_counted {
                    self.content
                        .extend_from_slice(format!("id: {}\n", self.count).as_bytes());
                }
                self.data(&json);
            }
            Form::Poll => {
                if !self.content.is_empty() {
                    self.content.push(b',');
                }
                self.content.extend_from_slice(&json);
            }
        }
    }

    fn event(&mut self, kind: &str, json: &RawValue) {
        self.content
            .extend_from_slice(format!("event: {kind}\n").as_bytes());
        self.data(json.get().as_bytes());
    }

    /// Adds the data of an event, and its end. White space in JSON may have line breaks, which end a field.
    fn data(&mut self, json: &[u8]) {
        for line in json.split(|byte| matches!(byte, b'\n' | b'\r')) {
            self.content.extend_from_slice(b"data: ");
            self.content.extend_from_slice(line);
            self.content.push(b'\n');
        }
        self.content.push(b'\n');
    }

    /// The length of what is made and not taken, in bytes.
    pub(super) fn len(&self) -> usize {
        self.content.len()
    }

    /// Whether the answer need not wait for more messages.
    pub(super) fn is_worth_sending(&self, has_counted: bool) -> bool {
        match self.form {
            Form::Events => !self.content.is_empty(),
            Form::Poll => has_counted || self.session.is_some() || self.close.is_some(),
        }
    }

    /// The number of messages of the session so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Takes what is made. For long polling, this is the whole answer.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let content = mem::take(&mut self.content);
        match self.form {
            Form::Events => content,
            Form::Poll => {
                let field = |name: &str, value: &Option<Box<RawValue>>| {
                    let value = value.as_ref();
                    value.map_or(String::new(), |json| format!(r#""{name}":{json},"#))
                };
                let session = field("session", &self.session);
                let close = field("close", &self.close);
                let mut answer =
                    format!(r#"{{{session}{close}"count":{},"messages":["#, self.count)
                        .into_bytes();
                answer.extend_from_slice(&content);
                answer.extend_from_slice(b"]}\n");
                answer
            }
        }
    }
}

fn json(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("numbers and strings always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ResumeToken;

    fn text(text: &str) -> Frame {
        Frame::text(|buffer| buffer.extend_from_slice(text.as_bytes()))
    }

    fn made(answer: &mut Answer) -> String {
        String::from_utf8(answer.take()).unwrap()
    }

    fn resume() -> Resume {
        Resume {
            token: ResumeToken::parse("AAAAAAAAAAAAAAAAAAAAAA").unwrap(),
            seconds: 30,
        }
    }

    #[test]
    fn a_request_names_the_form_that_it_accepts() {
        let form = |accept: &'static str| {
            let value = HeaderValue::from_static(accept);
            Form::of(&HeaderMap::from_iter([(ACCEPT, value)]))
        };
        assert_eq!(form("text/event-stream"), Some(Form::Events));
        assert_eq!(
            form("text/html, Text/Event-Stream;q=0.9"),
            Some(Form::Events)
        );
        assert_eq!(form("application/json"), Some(Form::Poll));
        for other in ["", "*/*", "text/html", "text/event-streams"] {
            assert_eq!(form(other), None, "{other}");
        }
        assert_eq!(Form::of(&HeaderMap::new()), None);
    }

    #[test]
    fn events_have_the_number_of_their_message() {
        let mut answer = Answer::new(Form::Events);
        answer.introduce(&resume());
        answer.add(&text(r#"{"a":1}"#));
        answer.add(&Frame::ping(b""));
        answer.add(&Frame::binary(|buffer| buffer.extend_from_slice(b"abc")));
        answer.add(&Frame::close(Some((1012, "later"))));
        assert_eq!(
            made(&mut answer),
            "event: session\ndata: {\"token\":\"AAAAAAAAAAAAAAAAAAAAAA\",\"seconds\":30}\n\n\
             id: 1\ndata: {\"a\":1}\n\n:\n\nid: 2\ndata: \"YWJj\"\n\n\
             event: close\ndata: {\"code\":1012,\"reason\":\"later\"}\n\n"
        );
        assert_eq!(made(&mut answer), "");
    }

    #[test]
    fn a_line_break_in_a_message_becomes_one_of_its_data() {
        let mut answer = Answer::new(Form::Events);
        answer.add(&text("{\"a\":\n1,\r\"b\":2}"));
        assert_eq!(
            made(&mut answer),
            "id: 1\ndata: {\"a\":\ndata: 1,\ndata: \"b\":2}\n\n"
        );
    }

    #[test]
    fn the_first_message_of_a_resumed_session_is_not_counted() {
        let mut answer = Answer::new(Form::Events);
        answer.continue_after(7);
        answer.add(&text("1"));
        answer.add(&text("2"));
        assert_eq!(made(&mut answer), "data: 1\n\nid: 8\ndata: 2\n\n");
        let mut answer = Answer::new(Form::Poll);
        answer.continue_after(7);
        answer.add(&text("1"));
        assert!(!answer.is_worth_sending(answer.count() > 7));
        assert_eq!(made(&mut answer), "{\"count\":7,\"messages\":[1]}\n");
    }

    #[test]
    fn long_polling_gets_one_object() {
        let mut answer = Answer::new(Form::Poll);
        answer.introduce(&resume());
        answer.add(&text("{}"));
        answer.add(&Frame::ping(b""));
        answer.add(&Frame::binary(|buffer| buffer.push(0)));
        answer.add(&Frame::close(Some((1008, ""))));
        assert_eq!(
            made(&mut answer),
            "{\"session\":{\"token\":\"AAAAAAAAAAAAAAAAAAAAAA\",\"seconds\":30},\
             \"close\":{\"code\":1008,\"reason\":\"\"},\"count\":2,\"messages\":[{},\"AA==\"]}\n"
        );
    }
}
