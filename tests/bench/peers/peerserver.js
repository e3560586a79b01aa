// PeerServer with its default behaviour. It has no rooms, only messages between two clients.
import { PeerServer } from "peer";

PeerServer({ host: "127.0.0.1", port: 0, concurrent_limit: 20_000 }, (server) =>
  console.log(`peerserver listening on http://127.0.0.1:${server.address().port}`),
);
