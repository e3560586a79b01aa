use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::{message::is_reference, *};
use crate::websocket::Frame;

fn id() -> SessionId {
    SessionId::parse("6c1f0000-0000-4000-8000-000000000001").unwrap()
}

/// Any notation of JSON: white space, order, escapes and digits of every kind.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        select(vec![
            "null",
            "true",
            "false",
            "0",
            "-0.0",
            "1e999",
            "1E-7",
            "12345678901234567890"
        ])
        .prop_map(String::from),
        "-?[1-9][0-9]{0,30}(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
        "\"([a-zA-Z0-9 é🍵\u{2028}]|\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}){0,8}\"",
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        let space = || "[ \t\n\r]{0,2}";
        let items = vec((space(), inner.clone(), space()), 0..5);
        let fields = vec((space(), "\"[a-c]{1,2}\"", space(), inner), 0..5);
        prop_oneof![
            items.prop_map(|items| {
                let items = items.into_iter().map(|(a, item, b)| a + &item + &b);
                format!("[{}]", items.collect::<Vec<_>>().join(","))
            }),
            fields.prop_map(|fields| {
                let fields = fields
                    .into_iter()
                    .map(|(a, name, b, value)| a + &name + &b + ":" + &value);
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e9..1e9).prop_map(|number: f64| Value::from(number + 0.5)),
        select(vec![
            "all",
            "server",
            "6c1f0000-0000-4000-8000-000000000001"
        ])
        .prop_map(Value::from),
        "\\PC{0,30}".prop_map(Value::from),
        "[a-zé\u{0}\"\\\\]{40,70}".prop_map(Value::from),
        vec(any::<u8>(), 0..3).prop_map(Value::from),
    ]
}

/// The rules for messages, applied to generated fields: whether `parse` must accept their text.
fn is_valid(fields: &[(String, Value)]) -> bool {
    let of = |name: &str| {
        let own: Vec<&Value> = fields
            .iter()
            .filter(|field| field.0 == name)
            .map(|field| &field.1)
            .collect();
        own.into_iter()
    };
    let names = ["type", "sender", "receiver", "data", "ref"];
    fields.iter().all(|(name, _)| names.contains(&&**name))
        && names.iter().all(|name| of(name).count() <= 1)
        && of("type").any(|kind| {
            kind.as_str()
                .is_some_and(|kind| (1..=64).contains(&kind.len()))
        })
        && of("receiver").any(Value::is_string)
        && of("ref").all(|mark| {
            let is_round = |mark: f64| mark.fract() == 0.0 && mark.abs() < 1e16;
            mark.is_null()
                || mark.is_i64()
                || mark.is_u64()
                || mark.as_f64().is_some_and(is_round)
                || mark.as_str().is_some_and(|mark| mark.len() <= 64)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parser_agrees_with_serde_jsons_value(
        kind in option::weighted(0.95, value()),
        receiver in option::weighted(0.95, value()),
        more in vec((select(vec!["sender", "data", "ref", "type", "Data", ""]), value()), 0..4),
        likely in any::<bool>(),
    ) {
        let mut fields: Vec<(String, Value)> = Vec::new();
        let likely_kind = likely.then(|| Value::from("chat"));
        fields.extend(likely_kind.or(kind).map(|value| ("type".into(), value)));
        let likely_receiver = likely.then(|| Value::from("all"));
        fields.extend(likely_receiver.or(receiver).map(|value| ("receiver".into(), value)));
        fields.extend(more.into_iter().map(|(name, value)| (name.into(), value)));
        let middle = fields.len() / 2;
        fields.rotate_left(middle);
        let written = fields.iter().map(|(name, value)| format!("{name:?}: {value}"));
        let text = format!("{{{}}}", written.collect::<Vec<_>>().join(" ,\n"));

        let parsed = parse(&text);
        prop_assert_eq!(parsed.is_ok(), is_valid(&fields), "{}: {:?}", text, parsed);
        if let Ok(message) = parsed {
            let object: Value = serde_json::from_str(&text).unwrap();
            let as_value = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).unwrap();
            prop_assert_eq!(&object["type"], &*message.kind);
            prop_assert_eq!(&object["data"], &message.data.map_or(Value::Null, as_value));
            let mark = object.get("ref").filter(|mark| !mark.is_null()).cloned();
            prop_assert_eq!(mark, message.reference.map(as_value));
            let receiver = object["receiver"].as_str().unwrap();
            match message.receiver {
                Receiver::All => prop_assert_eq!(receiver, "all"),
                Receiver::Server => prop_assert_eq!(receiver, "server"),
                Receiver::Session(id) => prop_assert_eq!(receiver, id.to_string()),
                Receiver::User(name) => prop_assert_eq!(receiver, format!("user:{name}")),
                Receiver::Unknown(other) => {
                    prop_assert!(!receiver.starts_with("user:"));
                    prop_assert_eq!(receiver, other);
                }
            }
        }
    }

    #[test]
    fn only_json_objects_are_messages(
        data in json_text(),
        at in any::<prop::sample::Index>(),
        with in "[\\PC\u{0}]",
    ) {
        let mut text = format!(r#"{{"type":"x","receiver":"all","data":{data}}}"#);
        let at = at.index(text.len());
        let at = text.floor_char_boundary(at);
        text.replace_range(at..text.ceil_char_boundary(at + 1), &with);
        if let Ok(message) = parse(&text) {
            // RawValue checks JSON without limits for depth, digits and surrogates.
            let raw: &RawValue = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(raw.get().as_bytes()[0], b'{');
            prop_assert!((1..=64).contains(&message.kind.len()));
        }
    }

    #[test]
    fn data_survives_parsing_and_encoding_byte_for_byte(
        data in json_text(),
        space in "[ \t\n\r]{0,3}",
    ) {
        let text = format!(r#"{{"type":"x","data":{space}{data}{space},"receiver":"all"}}"#);
        let message = parse(&text).unwrap();
        let relayed = relayed(&message, id());
        let head = format!(r#"{{"type":"x","sender":"{}","receiver":"all","data":"#, id());
        let expected = head + &data + "}";
        prop_assert!(relayed.bytes().ends_with(expected.as_bytes()));
    }

    #[test]
    fn every_type_survives_parsing_and_encoding(
        kind in "\\PC{1,16}|[\u{0}-\u{1f}\"\\\\]{1,64}",
    ) {
        let text = format!(r#"{{"type":{},"receiver":"all"}}"#, Value::from(&*kind));
        let relayed = relayed(&parse(&text).unwrap(), id());
        let start = relayed.bytes().windows(7).position(|bytes| bytes == b"{\"type\"").unwrap();
        let back: Value = serde_json::from_slice(&relayed.bytes()[start..]).unwrap();
        prop_assert_eq!(&back["type"], &*kind);
    }
}

#[test]
fn a_ref_is_a_short_string_or_a_short_integer() {
    let good = ["0", "-1", "18446744073709551615", "1.0", "-1.000", r#""""#];
    for mark in good.map(str::to_owned).into_iter().chain(["9".repeat(20)]) {
        assert!(is_reference(&mark), "{mark}");
    }
    let bad = ["1.5", "1e3", "1.0e0", "true", "[]", "null"];
    let long = [
        "9".repeat(21),
        "9".repeat(60_000),
        format!("1.{}", "0".repeat(60_000)),
    ];
    for mark in bad.map(str::to_owned).into_iter().chain(long) {
        assert!(!is_reference(&mark), "{mark}");
    }
}

#[test]
fn events_and_answers_have_the_format_of_the_protocol() {
    let ends = |frame: Frame, text: &str| {
        assert!(frame.bytes().ends_with(text.as_bytes()), "{text}");
    };
    let to = id();
    ends(
        joined(to, None),
        &format!(r#"{{"type":"new","sender":"{to}","receiver":"all","data":null}}"#),
    );
    ends(
        left(to),
        &format!(r#"{{"type":"close","sender":"{to}","receiver":null,"data":null}}"#),
    );
    let mark = to_raw_value("m").unwrap();
    let data = r#"{"ref":"m","receivers":3}"#;
    let text = format!(r#"{{"type":"ack","sender":"server","receiver":"{to}","data":{data}}}"#);
    ends(ack(to, &mark, 3), &text);
    let data = r#"{"code":"empty_room","message":"no other session is in this room"}"#;
    let text = format!(r#"{{"type":"error","sender":"server","receiver":"{to}","data":{data}}}"#);
    ends(error(to, &Problem::empty_room(), None), &text);
}

#[test]
fn room_names_follow_the_same_rule_in_urls_and_in_json() {
    let read = |name: &str| serde_json::from_value::<RoomName>(name.into()).is_ok();
    for name in ["lobby", "a b", "/", "...", ".a", "a..", "\u{2028}"] {
        assert!(read(name), "{name:?}");
        let segment =
            percent_encoding::percent_encode(name.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
        assert_eq!(
            RoomName::from_segment(&segment.to_string())
                .unwrap()
                .as_str(),
            name
        );
    }
    for name in ["", ".", "..", "a\nb", "\u{7f}", "\u{85}", &"n".repeat(129)] {
        assert!(!read(name), "{name:?}");
    }
    for segment in ["", ".", "..", "%2e", "%2E.", ".%2e", "%0a", "%C2%85"] {
        assert!(RoomName::from_segment(segment).is_err(), "{segment}");
    }
}

#[test]
fn room_names_are_escaped_only_in_the_log() {
    let name = "tea\u{2028}\u{202E}";
    let room: RoomName = serde_json::from_value(name.into()).unwrap();
    assert_eq!(room.to_string(), r"tea\u{2028}\u{202e}");
    assert_eq!(serde_json::to_value(&room).unwrap(), name);
    assert_eq!(room.as_str(), name);
}
