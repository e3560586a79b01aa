//! Joining a room.

use std::{
    fmt::{self, Display},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use super::{
    connect::{Connect, DEFAULT_TIMEOUT},
    events::{self, Events},
    handle::{Handle, Shared},
    retry::{Delays, LONGEST},
    room::Room,
    room_url::RoomUrl,
    settings::Settings,
    task::Task,
    token::Token,
};

/// How much may be queued, or sent and not acknowledged, unless the application says otherwise.
const DEFAULT_QUEUE_BYTES: usize = 1024 * 1024;

/// How long the server may be silent before it is asked for a sign of life. It pings every 20 seconds by default.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(25);

/// How to join a room.
#[derive(Clone)]
#[must_use = "call `open`"]
pub struct Join(Settings);

impl Join {
    /// Joins the room of this URL.
    pub fn room(url: RoomUrl) -> Join {
        Join(Settings {
            connect: Connect::to(url),
            token: Token::None,
            resumes: true,
            is_wire: false,
            timeout: DEFAULT_TIMEOUT,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            give_up_after: None,
            delays: Delays::default(),
            queue_bytes: DEFAULT_QUEUE_BYTES,
            event_bytes: DEFAULT_QUEUE_BYTES,
        })
    }

    /// The token that admits to the room.
    pub fn token(mut self, token: impl Into<String>) -> Join {
        self.0.token = Token::Fixed(token.into());
        self
    }

    /// A function that returns the token. It is called before each connection, and has the time of
    /// [`timeout`](Join::timeout). If the server does not accept a token, the function is asked for one more.
    pub fn token_from<F, T, E>(mut self, function: F) -> Join
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: Display,
    {
        self.0.token = Token::fresh(function);
        self
    }

    /// The origin of a web page, as a browser would send it.
    pub fn origin(mut self, origin: impl Into<String>) -> Join {
        self.0.connect = self.0.connect.origin(origin);
        self
    }

    /// Whether the session is resumed when its connection was lost; it is by default.
    pub fn resume(mut self, resumes: bool) -> Join {
        self.0.resumes = resumes;
        self
    }

    /// Asks for [`Event::Wire`](super::Event::Wire) in place of the events that are made of messages. What the client
    /// sends on its own account is not shown: answers to its pings, and `resumed`.
    pub fn wire(mut self, is_wire: bool) -> Join {
        self.0.is_wire = is_wire;
        self
    }

    /// How long one attempt may take, from the token to the answer to `hello`, and the server to answer later; 10 seconds
    /// by default.
    pub fn timeout(mut self, timeout: Duration) -> Join {
        self.0.timeout = timeout.min(LONGEST);
        self
    }

    /// How long the server may be silent before it is asked for a sign of life; 25 seconds by default.
    pub fn idle_timeout(mut self, timeout: Duration) -> Join {
        self.0.idle_timeout = timeout.min(LONGEST);
        self
    }

    /// Closes the room when there was no connection for this long, after a last attempt, also if the server asks to wait
    /// longer. By default it connects again for ever.
    pub fn give_up_after(mut self, limit: Duration) -> Join {
        self.0.give_up_after = Some(limit);
        self
    }

    /// The delay before the first attempt to connect again, which doubles with each, and the longest; half a second and
    /// 30 seconds by default. Up to half of a delay is left out at random.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Join {
        self.0.delays = Delays {
            first: first.min(LONGEST),
            longest: longest.min(LONGEST),
        };
        self
    }

    /// How many bytes may be queued, or sent and not acknowledged; 1 MiB by default.
    pub fn queue_bytes(mut self, bytes: usize) -> Join {
        self.0.queue_bytes = bytes;
        self
    }

    /// How many bytes of events may wait for the application; 1 MiB by default. Beyond, nothing is read from the
    /// server, and if that lasts longer than [`timeout`](Join::timeout), the room closes.
    pub fn event_bytes(mut self, bytes: usize) -> Join {
        self.0.event_bytes = bytes;
        self
    }

    /// Connects, in a task of its own. Messages may be sent at once: they wait for the connection.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn open(self) -> (Room, Events) {
        let (leaving, on_leaving) = watch::channel(false);
        let (done, on_done) = watch::channel(false);
        let (commands, receiver) = mpsc::unbounded_channel();
        let handle = Arc::new(Handle { leaving });
        let shared = Arc::new(Shared::new(self.0.queue_bytes));
        let (sink, events) = events::queue(self.0.event_bytes, handle.clone());
        let room = Room::new(commands, shared.clone(), handle, on_done);
        tokio::spawn(Task::new(self.0, receiver, shared, sink).run(on_leaving, done));
        (room, events)
    }
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Join");
        shown.field("connect", &self.0.connect);
        shown.field("resumes", &self.0.resumes);
        shown.finish_non_exhaustive()
    }
}
