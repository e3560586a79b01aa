//! The resume token, which is never shown.

use serde::Deserialize;
use serde_json::value::RawValue;

/// The part of an answer to `hello` that has the token.
#[derive(Deserialize)]
struct Hello<'a> {
    #[serde(borrow)]
    resume: Option<&'a RawValue>,
}

/// How a session can be resumed.
#[derive(Deserialize)]
struct Resume {
    seconds: u64,
}

/// A text without the resume token that the data of an answer to `hello` in it has. The rest stays as it is.
pub(super) fn without_token(text: &str, data: &RawValue) -> String {
    let hello = serde_json::from_str(data.get());
    let Ok(Hello {
        resume: Some(resume),
    }) = hello
    else {
        return text.into();
    };
    let shown = match serde_json::from_str(resume.get()) {
        Ok(Resume { seconds }) => format!("{{\"seconds\":{seconds}}}"),
        Err(_) => "{}".into(),
    };
    text.replace(resume.get(), &shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_left_out() {
        let shown = |data: &str| {
            let data = RawValue::from_string(data.into()).unwrap();
            without_token(&format!("<{data}>"), &data)
        };
        assert_eq!(
            shown(r#"{"peers":[1.0], "resume":{"token":"x","seconds":60},"a":null}"#),
            r#"<{"peers":[1.0], "resume":{"seconds":60},"a":null}>"#
        );
        assert_eq!(shown(r#"{"resume":"x"}"#), r#"<{"resume":{}}>"#);
        for data in [r#"{"resume":null}"#, "{}", "7"] {
            assert_eq!(shown(data), format!("<{data}>"));
        }
    }
}
