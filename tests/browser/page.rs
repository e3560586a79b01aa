//! Waiting for what the demo page shows.

use super::driver::Tab;

/// Defines `statistics(type, kind, field)` in the page: a field of the WebRTC statistics of this
/// type and kind, from every connected connection.
const STATISTICS: &str = "
    const statistics = async (type, kind, field) => {
        const values = [];
        for (const connection of connections) {
            if (connection.connectionState !== 'connected') continue;
            for (const stats of (await connection.getStats()).values()) {
                if (stats.type === type && stats.kind === kind) values.push(stats[field] ?? 0);
            }
        }
        return values;
    };";

/// Waits until a tab lists this number of people, including its own user.
pub async fn until_people(tab: &Tab<'_>, count: usize) {
    tab.until(&format!(
        "document.querySelectorAll('#people-list li').length === {count}"
    ))
    .await;
}

/// Waits until a tab shows a chat message with this text.
pub async fn until_message(tab: &Tab<'_>, text: &str) {
    tab.until(&format!(
        "[...document.querySelectorAll('#chat-log .message-text')].some((item) => item.textContent === {text:?})"
    ))
    .await;
}

/// Waits until the videos of this number of connections play: each decodes more than two further
/// frames.
pub async fn until_videos_play(tab: &Tab<'_>, connections: usize) {
    let script = format!(
        "{STATISTICS}
        return new Promise(async (resolve) => {{
            const frames = () => statistics('inbound-rtp', 'video', 'framesDecoded');
            let first = await frames();
            for (;;) {{
                const now = await frames();
                if (now.length !== first.length) first = now;
                if (now.filter((count, index) => count > first[index] + 2).length >= {connections}) return resolve();
                await new Promise((next) => setTimeout(next, 50));
            }}
        }});"
    );
    tab.run(&script).await;
}

/// The sum of a field of the WebRTC statistics over all connections.
pub async fn sum_statistics(tab: &Tab<'_>, stats_type: &str, kind: &str, field: &str) -> f64 {
    let script = format!("{STATISTICS} return statistics('{stats_type}', '{kind}', '{field}')");
    let values: Vec<f64> = serde_json::from_value(tab.run(&script).await).unwrap();
    values.iter().sum()
}
