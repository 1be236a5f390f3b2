//! The life of a pod, run without a runtime, root or files.

mod cases;
mod planted;
mod samples;
mod sequences;
mod table;
mod world;
