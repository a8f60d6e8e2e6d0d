"""Functions for CVAT's command line: `interactor` for clicks and boxes, `detector` for AutoMask.

They need `cvat-cli` and `samserve-client`, nothing of the server::

    cvat-cli function create-native samserve --function-module samserve.cvat.interactor
    cvat-cli function run-agent ID --function-module samserve.cvat.interactor \\
        -p target=str:gateway.example.com:50051 -p tls=bool:true -p token_file=str:token.txt
    cvat-cli task auto-annotate TASK --function-module samserve.cvat.detector -p label=str:cell
"""
