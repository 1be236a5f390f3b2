//! Pulls an image into a folder and prints how long it took: `pull FOLDER REFERENCE [CERTS_DIR]`. Needs root.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, reference, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: pull FOLDER REFERENCE [CERTS_DIR]");
        return ExitCode::from(2);
    };
    let certs_dir = rest.first().map_or("/etc/containerd/certs.d", String::as_str);
    match pull(folder, reference, certs_dir) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("pull: {error}");
            let causes = std::iter::successors(error.source(), |cause| cause.source());
            causes.for_each(|cause| eprint!(": {cause}"));
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn pull(folder: &str, reference: &str, certs_dir: &str) -> Result<String, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = image::ImageStore::open(image::Options::new(folder, certs_dir))?;
    let started = Instant::now();
    let record = runtime.block_on(store.pull(reference, None))?;
    let took = started.elapsed();
    Ok(format!("{} {} bytes in {} layers, {took:.2?}", record.id, record.size, record.layers.len()))
}
