//! What clients send: requests, indications, and ChannelData.

use std::{net::SocketAddr, sync::Arc};

use stun_types::{
    message::{Message, MessageClass},
    prelude::AttributeStaticType,
};
use turn_types::{
    attribute::{Data, XorPeerAddress},
    message::SEND,
};

use super::{
    allocation::Allocation,
    client::{Client, Link},
    five_tuple::FiveTuple,
    reply::unknown_attributes,
    requests,
    state::{CHANNEL_HEADER, TurnState},
};

/// Handles a STUN message or ChannelData from a client, which `link` leads to. Whatever else comes is ignored.
pub(super) fn receive(
    state: &Arc<TurnState>,
    five_tuple: FiveTuple,
    datagram: &mut [u8],
    link: impl FnOnce() -> Link,
) {
    // The first two bits tell them apart (RFC 8656, section 12).
    match datagram.first() {
        Some(0x40..0x80) => {
            if let Some(allocation) = state.allocations.of(&five_tuple) {
                receive_channel_data(state, &allocation, datagram);
            }
        }
        Some(0..0x40) => {
            if let Ok(message) = Message::from_bytes(datagram) {
                receive_message(state, five_tuple, &message, link);
            }
        }
        _ => {}
    }
}

/// Passes ChannelData on (RFC 8656, section 12.6). Over TCP, padding follows the data.
fn receive_channel_data(state: &TurnState, allocation: &Allocation, datagram: &mut [u8]) {
    let [first, second, high, low, ..] = *datagram else {
        return;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let channel = allocation.channel(u16::from_be_bytes([first, second]));
    if let Some((framed, peer)) = datagram.get_mut(..CHANNEL_HEADER + length).zip(channel) {
        state.pass_to_peer(allocation, peer, framed);
    }
}

fn receive_message(
    state: &Arc<TurnState>,
    five_tuple: FiveTuple,
    message: &Message<'_>,
    link: impl FnOnce() -> Link,
) {
    if message.has_class(MessageClass::Request) {
        let client = Client {
            five_tuple,
            link: link(),
        };
        if let Some(answer) = requests::answer(state, &client, message) {
            client.answer(&answer);
        }
    } else if message.has_class(MessageClass::Indication)
        && message.has_method(SEND)
        && let Some(allocation) = state.allocations.of(&five_tuple)
    {
        receive_send(state, &allocation, message);
    }
}

/// Passes the data of a Send indication on (RFC 8656, section 11.2).
fn receive_send(state: &TurnState, allocation: &Allocation, message: &Message<'_>) {
    let is_known = unknown_attributes(message, &[XorPeerAddress::TYPE, Data::TYPE]).is_empty();
    let (true, Ok(peer), Ok(data)) = (
        is_known,
        message.attribute::<XorPeerAddress>(),
        message.attribute::<Data<'_>>(),
    ) else {
        return;
    };
    let peer: SocketAddr = peer.addr(message.transaction_id());
    if let Some(reach) = allocation.permitted(peer.ip()) {
        let mut framed = vec![0; CHANNEL_HEADER];
        framed.extend(data.data());
        state.pass_to_peer(allocation, (peer, reach), &mut framed);
    }
}
