//! Owns what the compiler is told of the build: the platform's name, by which releases are listed.

fn main() {
    // Cargo sets it for every build script.
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=HOLDFAST_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
}
