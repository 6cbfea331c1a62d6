//! `fake-agent`: what a bad release of the agent has in it. It panics or hangs, as the last word of its own file says.

fn main() {
    let own = std::fs::read("/proc/self/exe").unwrap_or_default();
    while own.ends_with(b"hang") {
        std::thread::park();
    }
    panic!("a bad release of the agent");
}
