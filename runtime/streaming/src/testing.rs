//! What tests send as a client, and how they read what a server sends.

pub(crate) mod spdy;
pub(crate) mod websocket;

/// Calls `read` with the parts of `bytes` between the places of `cuts`, which may be any numbers.
pub(crate) fn split(bytes: &[u8], cuts: &[usize], mut read: impl FnMut(&mut [u8])) {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    for pair in places.windows(2) {
        let [from, to] = pair else { continue };
        read(&mut bytes[*from..*to].to_vec());
    }
}
