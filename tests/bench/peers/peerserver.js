// PeerServer as it comes: it has no rooms, only messages from one to one.
import { PeerServer } from "peer";

PeerServer({ host: "127.0.0.1", port: 0, concurrent_limit: 20_000 }, (server) =>
  console.log(`peerserver listening on http://127.0.0.1:${server.address().port}`),
);
