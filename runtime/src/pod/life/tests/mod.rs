//! Tests of a pod's state machine. They need no tokio, no root and no file but docs/pod-states.md.

mod cases;
mod planted;
mod refused;
mod retried;
mod samples;
mod sequences;
mod table;
mod updates;
mod world;
