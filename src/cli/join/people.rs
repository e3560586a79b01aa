//! Who is in the room, and what they are called.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, value::RawValue};

use super::super::printable;

/// How many characters of an id are shown.
const SHORT_ID: usize = 8;

/// What the server is called.
pub(super) const SERVER: &str = "the server";

/// Somebody in the room.
struct Person {
    id: String,
    /// The name in the token, which comes first.
    user: Option<String>,
    /// The name in the state.
    name: Option<String>,
    state: Box<RawValue>,
    /// The place in the order of colours.
    color: usize,
}

/// Who is in the room.
#[derive(Default)]
pub(super) struct People {
    /// The session's own id.
    pub(super) own: String,
    /// The others by the order in which they joined.
    others: BTreeMap<u64, Person>,
    /// The place of each id in that order.
    places: HashMap<String, u64>,
    next_place: u64,
    /// The colours of those who have left. All others up to the number of people are taken.
    free_colors: BTreeSet<usize>,
}

/// The name that public data of a token, or a state or a message, has.
pub(super) fn named(data: &RawValue, field: &str) -> Option<String> {
    let data: Value = serde_json::from_str(data.get()).ok()?;
    data[field].as_str().and_then(printable::name)
}

/// An id as it is shown. Only a session id is safe to show as it is.
fn short(id: &str) -> String {
    let short: String = id.chars().take(SHORT_ID).collect();
    printable::printable(&short)
}

impl People {
    /// Forgets everyone.
    pub(super) fn clear(&mut self) {
        self.others.clear();
        self.places.clear();
        self.free_colors.clear();
    }

    /// Adds somebody, with the first free colour.
    pub(super) fn add(&mut self, id: &str, data: &RawValue, state: &RawValue) {
        self.remove(id);
        let color = self.free_colors.pop_first();
        let person = Person {
            id: id.into(),
            user: named(data, "user"),
            name: named(state, "name"),
            state: state.to_owned(),
            color: color.unwrap_or(self.others.len() + 1),
        };
        self.places.insert(id.into(), self.next_place);
        self.others.insert(self.next_place, person);
        self.next_place += 1;
    }

    pub(super) fn remove(&mut self, id: &str) {
        let place = self.places.remove(id);
        if let Some(person) = place.and_then(|place| self.others.remove(&place)) {
            self.free_colors.insert(person.color);
        }
    }

    /// Sets the state of somebody. Returns the name before, if it is another now.
    pub(super) fn set_state(&mut self, id: &str, state: &RawValue) -> Option<String> {
        let before = self.name(id);
        let person = self.others.get_mut(self.places.get(id)?)?;
        person.name = named(state, "name");
        person.state = state.to_owned();
        (self.name(id) != before).then_some(before)
    }

    fn get(&self, id: &str) -> Option<&Person> {
        self.others.get(self.places.get(id)?)
    }

    /// What somebody is called: the name in the token, the name in the state, or else the beginning of the id. Anybody
    /// may take any name for a state, so the id follows one that another has, too.
    pub(super) fn name(&self, id: &str) -> String {
        let Some(person) = self.get(id) else {
            return short(id);
        };
        match (&person.user, &person.name) {
            (Some(user), _) => user.clone(),
            (None, Some(name)) if self.is_ambiguous(name, id) => format!("{name} ({})", short(id)),
            (None, Some(name)) => name.clone(),
            (None, None) => short(id),
        }
    }

    /// Whether the server or somebody else has a name.
    fn is_ambiguous(&self, name: &str, id: &str) -> bool {
        let name = name.to_lowercase();
        let is_alike = |other: &String| other.to_lowercase() == name;
        let mut others = self.others.values().filter(|it| it.id != id);
        name == SERVER
            || others.any(|it| it.user.as_ref().or(it.name.as_ref()).is_some_and(is_alike))
    }

    /// The place of somebody in the order of colours; one's own is 0.
    pub(super) fn color(&self, id: &str) -> usize {
        self.get(id).map_or(0, |person| person.color)
    }

    /// The ids of the others, longest-joined first.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.others.values().map(|person| &*person.id)
    }

    /// The state of somebody as JSON, unless it has nothing but a name.
    pub(super) fn state(&self, id: &str) -> Option<String> {
        let raw = &self.get(id)?.state;
        let shown = match serde_json::from_str::<Value>(raw.get()) {
            Ok(Value::Null) => return None,
            Ok(Value::Object(state)) if state.len() == 1 && state.contains_key("name") => {
                return None;
            }
            Ok(state) => state.to_string(),
            // What is no value is shown as it was written.
            Err(_) => raw.get().to_owned(),
        };
        Some(printable::printable(&shown))
    }

    /// The session of somebody, by name, id or how the id begins.
    ///
    /// # Errors
    ///
    /// If there is none, or more than one.
    pub(super) fn find(&self, text: &str) -> Result<&str, String> {
        let wanted = text.to_lowercase();
        let named = self
            .ids()
            .filter(|id| self.name(id).to_lowercase() == wanted);
        let named: Vec<&str> = named.collect();
        let claims = |id: &str| {
            let name = self.get(id).and_then(|it| it.name.as_ref());
            name.is_some_and(|name| name.to_lowercase() == wanted)
        };
        let found = match named.is_empty() {
            true => {
                let is_meant = |id: &&str| id.starts_with(&wanted) || claims(id);
                self.ids().filter(is_meant).collect()
            }
            false => named,
        };
        match found[..] {
            [id] => Ok(id),
            [] => Err(format!("nobody here is called {text}")),
            [..] => {
                let ids: Vec<String> = found.iter().map(|id| short(id)).collect();
                Err(format!("{text} may be {}: use the id", ids.join(" or ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        to_raw_value(value).unwrap()
    }

    #[test]
    fn people_are_found_by_name_or_id() {
        let mut people = People::default();
        let ids = ["aaaaaaaa-1", "aaaabbbb-2", "cccccccc-3"];
        people.add(
            ids[0],
            &raw(&json!({"user": "alice"})),
            &raw(&json!({"name": "Not Alice"})),
        );
        people.add(
            ids[1],
            &raw(&Value::Null),
            &raw(&json!({"name": "Bob\u{1b}[31m"})),
        );
        people.add(ids[2], &raw(&Value::Null), &raw(&Value::Null));
        assert_eq!(
            ids.map(|id| people.name(id)),
            ["alice", "Bob[31m", "cccccccc"]
        );
        assert_eq!(ids.map(|id| people.color(id)), [1, 2, 3]);
        assert_eq!(people.find("Alice"), Ok(ids[0]));
        assert_eq!(people.find("cc"), Ok(ids[2]));
        assert_eq!(people.find("aaaaa"), Ok(ids[0]));
        assert!(
            people
                .find("aaaa")
                .unwrap_err()
                .contains("aaaaaaaa or aaaabbbb")
        );
        assert!(people.find("x").is_err());

        assert_eq!(
            people.set_state(ids[2], &raw(&json!({"name": "Carol", "muted": true}))),
            Some("cccccccc".into())
        );
        assert_eq!(
            people.set_state(ids[2], &raw(&json!({"name": "Carol"}))),
            None
        );
        people.remove(ids[0]);
        people.add("dddddddd-4", &raw(&Value::Null), &raw(&Value::Null));
        assert_eq!(people.color("dddddddd-4"), 1);
    }

    #[test]
    fn the_id_follows_a_name_that_another_has() {
        let mut people = People::default();
        let null = raw(&Value::Null);
        let named = |name: &str| raw(&json!({ "name": name }));
        people.add("aaaaaaaa-1", &raw(&json!({"user": "alice"})), &null);
        people.add("bbbbbbbb-2", &null, &named("Alice"));
        people.add("cccccccc-3", &null, &named("The server"));
        people.add("dddddddd-4", &null, &named("Dave"));
        let names = ["aaaaaaaa-1", "bbbbbbbb-2", "cccccccc-3", "dddddddd-4"];
        assert_eq!(
            names.map(|id| people.name(id)),
            ["alice", "Alice (bbbbbbbb)", "The server (cccccccc)", "Dave"]
        );
        assert_eq!(people.find("alice"), Ok("aaaaaaaa-1"));
        people.remove("aaaaaaaa-1");
        assert_eq!(people.name("bbbbbbbb-2"), "Alice");
        people.add("eeeeeeee-5", &null, &named("alice"));
        let problem = people.find("alice").unwrap_err();
        assert!(problem.contains("bbbbbbbb or eeeeeeee"), "{problem}");
    }

    #[test]
    fn a_state_that_is_no_value_is_shown_as_it_was_written() {
        let mut people = People::default();
        let state = RawValue::from_string(r#"{"name":"\ud800"}"#.into()).unwrap();
        people.add("aaaaaaaa-1", &raw(&Value::Null), &state);
        assert_eq!(people.name("aaaaaaaa-1"), "aaaaaaaa");
        assert_eq!(
            people.state("aaaaaaaa-1").as_deref(),
            Some(r#"{"name":"\\ud800"}"#)
        );
    }

    #[test]
    fn free_colors_are_taken_first_in_a_long_list_of_people() {
        let mut people = People::default();
        let null = raw(&Value::Null);
        for number in 0..20_000 {
            people.add(&number.to_string(), &null, &null);
        }
        people.remove("7");
        people.remove("3");
        people.add("x", &null, &null);
        assert_eq!((people.color("19999"), people.color("x")), (20_000, 4));
    }
}
