//! The native half of Turnout. This file is only the list of what there is.

pub mod engine;
pub mod kernels;

use pyo3::prelude::*;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<kernels::counters::Counters>()?;
    m.add_class::<kernels::head::HeadReader>()?;
    m.add_class::<kernels::keys::KeyTable>()?;
    m.add_class::<kernels::scan::FieldScanner>()?;
    m.add_class::<kernels::meaning::Lexicon>()?;
    m.add_class::<kernels::meaning::Said>()?;
    m.add_class::<kernels::meaning::Verifier>()?;
    m.add_class::<engine::hub::Engine>()?;
    m.add_class::<engine::origin::Head>()?;
    m.add_class::<engine::origin::Trust>()?;
    m.add_class::<engine::origin::Pool>()?;
    m.add_class::<engine::client::PyCall>()?;
    m.add_class::<kernels::sse::StreamScanner>()?;
    m.add_class::<kernels::tally::Tally>()?;
    m.add_function(wrap_pyfunction!(kernels::canonical::canonical, m)?)?;
    m.add_function(wrap_pyfunction!(kernels::answer::read_answer, m)?)?;
    m.add_function(wrap_pyfunction!(kernels::answer::read_usage, m)?)?;
    m.add_function(wrap_pyfunction!(kernels::near::nearest_rows, m)?)?;
    m.add_function(wrap_pyfunction!(kernels::near::row_of, m)?)?;
    m.add_function(wrap_pyfunction!(kernels::rows::ledger_batch, m)?)?;
    Ok(())
}
