//! Who is in the room, and what they are called.

use serde_json::Value;

use super::super::printable;

/// How many characters of an id are shown.
const SHORT_ID: usize = 8;

/// Somebody in the room.
struct Person {
    id: String,
    /// The name in the token, which comes first.
    user: Option<String>,
    state: Value,
    /// The place in the order of colours.
    color: usize,
}

/// Who is in the room.
#[derive(Default)]
pub(super) struct People {
    /// The session's own id.
    pub(super) own: String,
    others: Vec<Person>,
}

/// The name that public data of a token, or a state, has.
fn named(value: &Value, field: &str) -> Option<String> {
    value[field].as_str().and_then(printable::name)
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
    }

    /// Adds somebody, with the first free colour.
    pub(super) fn add(&mut self, id: &str, data: &Value, state: &Value) {
        self.remove(id);
        let is_free = |color: &usize| self.others.iter().all(|it| it.color != *color);
        let color = (1..).find(is_free).unwrap_or_default();
        self.others.push(Person {
            id: id.into(),
            user: named(data, "user"),
            state: state.clone(),
            color,
        });
    }

    pub(super) fn remove(&mut self, id: &str) {
        self.others.retain(|person| person.id != id);
    }

    /// Sets the state of somebody. Returns the name before, if it is another now.
    pub(super) fn set_state(&mut self, id: &str, state: &Value) -> Option<String> {
        let before = self.name(id);
        let person = self.others.iter_mut().find(|it| it.id == id)?;
        person.state = state.clone();
        (self.name(id) != before).then_some(before)
    }

    fn get(&self, id: &str) -> Option<&Person> {
        self.others.iter().find(|person| person.id == id)
    }

    /// What somebody is called: the name in the token, the name in the state, or else the beginning of the id.
    pub(super) fn name(&self, id: &str) -> String {
        let person = self.get(id);
        let name = person.and_then(|it| it.user.clone().or_else(|| named(&it.state, "name")));
        name.unwrap_or_else(|| short(id))
    }

    /// The place of somebody in the order of colours; one's own is 0.
    pub(super) fn color(&self, id: &str) -> usize {
        self.get(id).map_or(0, |person| person.color)
    }

    /// The ids of the others, longest-joined first.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.others.iter().map(|person| &*person.id)
    }

    /// The state of somebody as JSON, unless it has nothing but a name.
    pub(super) fn state(&self, id: &str) -> Option<String> {
        let state = &self.get(id)?.state;
        let only_name = state
            .as_object()
            .is_some_and(|it| it.len() == 1 && it.contains_key("name"));
        (!state.is_null() && !only_name).then(|| printable::printable(&state.to_string()))
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
        let found = match named.is_empty() {
            true => self.ids().filter(|id| id.starts_with(&wanted)).collect(),
            false => named,
        };
        match found[..] {
            [id] => Ok(id),
            [] => Err(format!(
                "nobody here is called {}",
                printable::printable(text)
            )),
            [..] => {
                let ids: Vec<String> = found.iter().map(|id| short(id)).collect();
                let name = printable::printable(text);
                Err(format!("{name} may be {}: use the id", ids.join(" or ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_are_found_by_name_or_id() {
        let mut people = People::default();
        let ids = ["aaaaaaaa-1", "aaaabbbb-2", "cccccccc-3"];
        people.add(
            ids[0],
            &json!({"user": "alice"}),
            &json!({"name": "Not Alice"}),
        );
        people.add(ids[1], &Value::Null, &json!({"name": "Bob\u{1b}[31m"}));
        people.add(ids[2], &Value::Null, &Value::Null);
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
            people.set_state(ids[2], &json!({"name": "Carol", "muted": true})),
            Some("cccccccc".into())
        );
        assert_eq!(people.set_state(ids[2], &json!({"name": "Carol"})), None);
        people.remove(ids[0]);
        people.add("dddddddd-4", &Value::Null, &Value::Null);
        assert_eq!(people.color("dddddddd-4"), 1);
    }
}
