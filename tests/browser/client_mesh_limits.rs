//! The client module's `Mesh`: what a hostile peer can make it do, places beyond `maxPeers`, and
//! listeners that close it.

use serde_json::json;

use super::{
    driver::Browser,
    scripted_server::{open_module_page, static_server},
};

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_has_one_mesh_at_a_time() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, "globalThis.room = join('one')").await;
    let script = "
        const attempt = () => { try { return new Mesh(room); } catch (error) { return error.message; } };
        const first = attempt();
        const refused = attempt();
        first.close();
        const second = attempt();
        // This closes the first once more.
        first.close();
        return [refused, second instanceof Mesh, attempt()]";
    let message = "the room has a mesh: close() that one first";
    assert_eq!(tab.run(script).await, json!([message, true, message]));
    browser.close().await;
}
