//! The README's example.

// hidden
fn main() -> mhc_ops::Result<()> {
    Ok(())
}
