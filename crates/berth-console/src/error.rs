//! Errors as the API's clients see them: a status and `{"error": "..."}`.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use berth_host::{ControlError, RunError};
use berth_sandbox::SandboxError;

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub(crate) fn no_such_app(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("there is no app {name}; `berth ps` lists them"),
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(serde_json::json!({ "error": self.message }))).into_response()
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = match error {
            ControlError::NoSuchApp(_) => StatusCode::NOT_FOUND,
            ControlError::CannotStart { .. } => StatusCode::CONFLICT,
            ControlError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, berth_workspace::chain(&error))
    }
}

impl From<RunError> for ApiError {
    fn from(error: RunError) -> Self {
        let status = match error {
            RunError::NoSuchApp(_) => StatusCode::NOT_FOUND,
            RunError::Exec { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, berth_workspace::chain(&error))
    }
}

impl From<SandboxError> for ApiError {
    fn from(error: SandboxError) -> Self {
        let status = match error {
            SandboxError::Exec { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, berth_workspace::chain(&error))
    }
}
