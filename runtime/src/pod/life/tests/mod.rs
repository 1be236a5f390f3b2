//! Tests of a pod's state machine; they need no runtime, root or files.

mod cases;
mod planted;
mod samples;
mod sequences;
mod table;
mod world;
